"""Turn a checkpoint into a bundle, and prove that nothing was lost."""
