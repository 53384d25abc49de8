"""Which modules follow the weight-decay schedule. One module per option of the `weight_decay` group."""
