"""The plan explorer; imports every room but `magic`."""
