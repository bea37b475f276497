"""Inference with a trained run: loading, calling the model, generating text."""
