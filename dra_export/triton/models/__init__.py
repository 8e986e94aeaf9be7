"""What `dra-export triton` copies into a model repository."""
