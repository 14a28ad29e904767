"""Loads a base model and makes it trainable."""

from logging import ERROR, getLogger

# Set before PEFT imports bitsandbytes, which would warn about CPU kernels that are not used here, once per layer.
getLogger("bitsandbytes").setLevel(ERROR)
