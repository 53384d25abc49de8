"""Which network sees which crops, masked or not, in which pass. One module per option of the `forward` group."""
