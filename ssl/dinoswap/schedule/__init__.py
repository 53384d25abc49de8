"""How lr, weight decay, momentum and the teacher's temperature go over a run. One module per option of the `schedule`
group."""
