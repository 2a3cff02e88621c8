"""Typed records of the files that one stage writes and others read, each with its reader and its writer."""
