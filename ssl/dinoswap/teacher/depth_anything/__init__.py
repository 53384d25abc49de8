"""The backbone of Depth Anything 3, its released variants and their files, for the teachers `native` and `package`."""
