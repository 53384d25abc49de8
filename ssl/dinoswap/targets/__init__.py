"""From teacher logits to target distributions over prototypes. One module per option of the `targets` group."""
