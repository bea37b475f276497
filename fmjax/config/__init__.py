"""Configs: gin files and bindings to a frozen experiment and back.

No other package imports gin.
"""
