"""A base model in, a trainable module out."""

from logging import ERROR, getLogger

# Set before PEFT imports bitsandbytes, which warns about kernels for the CPU that nothing here uses, and later about
# each layer.
getLogger("bitsandbytes").setLevel(ERROR)
