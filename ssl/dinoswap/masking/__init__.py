"""Which patches of which crops are hidden from the student. One module per option of the `masking` group."""
