"""Quantized weights as other libraries save them, read dequantized."""
