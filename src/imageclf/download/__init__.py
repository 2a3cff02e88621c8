"""Published data sets, their download, and the packing of your own images."""
