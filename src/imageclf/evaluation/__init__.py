"""Tables and plots of the test split."""
