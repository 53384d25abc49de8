"""What training begins from: weights of the seed, of a released file, or of a run. One module per option of the `start`
group."""
