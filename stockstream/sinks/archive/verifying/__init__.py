"""Verification of an archive: what `stockstream verify` reads, compares and reports. One module for each kind of object."""
