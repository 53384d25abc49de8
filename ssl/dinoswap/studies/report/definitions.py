"""What the words of a report mean, in plain sentences. Formulas: the modules of dinoswap.studies.statistics."""

DEFINITIONS = {
    "Difference": (
        "The value of an arm less that of the reference, for the same seed. Runs of one seed share data order, crops, "
        "masks and initial weights wherever their configs allow, so that most of the noise between seeds drops out."
    ),
    "Main effect": (
        "The difference that a level makes to its factor's first level, averaged evenly over the levels of all other "
        "factors. It is not the effect at one corner of the design: see the interactions."
    ),
    "Interval": (
        "95 % by Student's t, with the error that the test uses. If the study were repeated many times, 95 % of such "
        "intervals would hold the true difference. Each stands for itself: it can leave zero out where the verdict, "
        "which is corrected for the number of effects, says 'not distinguishable'."
    ),
    "Tested against": (
        "What an effect has to stand out from. An effect can be another one for each seed, so that more cells do not "
        "make up for few seeds. In a crossed design the error is the largest of three mean squares: seed x effect, "
        "pooled over the effects of its kind (main effects, interactions, shares of a gap); the residual; and seed x "
        "effect of this effect alone, as one may vary more than the others. The degrees of freedom are those of the "
        "larger of the first two. Simulated studies without any effect report one in at most 5 %, whatever effects "
        "vary by between seeds, as long as they vary alike (results/reference/verdicts). Arms that are compared with "
        "one cell are paired by seed and tested against the spread of the differences."
    ),
    "p (Holm)": (
        "The chance of a difference at least as large if there were none, raised by Holm's procedure so that the "
        "chance of even one false finding in the whole family of effects is at most 5 %. The family is all effects "
        "of one metric; the first metric of the study file decides."
    ),
    "Over all looks": (
        "The interval that holds at all looks together, in place of the one that holds at a single one. At planned "
        "looks it follows from how the study file spends the error rate (for t of few seeds, by their joint "
        "distribution), at any other it is a confidence sequence, which holds at every number of seeds. An effect that "
        "was once seen at a look that was not planned is judged by the second ever after. Reports are recorded in "
        "looks.jsonl among the study's runs."
    ),
    "p (sign flip)": (
        "The same question without assuming normal differences: the share of all choices of signs that give a mean as "
        "far from zero. It cannot be below 2 / 2^n at n seeds: .25 at 3, .0625 at 5, .031 at 6."
    ),
    "Equivalent": (
        "Two one-sided tests (TOST) say that the difference is smaller than the smallest effect of interest, which the "
        "study file declares. Such a difference may be real, but does not matter."
    ),
    "Not tested": (
        "Values that do not vary tell no error: every run of a side collapsed, diverged or failed, all have the same "
        "value, or the difference is the same in every seed. What the runs did is said, and nothing is concluded."
    ),
    "Not distinguishable": (
        "Neither different nor equivalent: with these seeds nothing can be said. 'Seeds needed' is how many would find "
        "the smallest effect of interest with 80 % power, if the spread is what it seems to be from these few runs."
    ),
    "Collapsed, diverged, failed": (
        "A collapsed run ended, but its features fill hardly any of their dimensions (RankMe below 2, or 2 %); its "
        "value counts, unless every run of its side fails. A diverged or failed run has no value; its failure counts, "
        "and an exact test compares how often the runs of both sides fail. Neither is ever dropped. What is missing, "
        "running, preempted or killed is no outcome."
    ),
    "Interaction": (
        "How much the effect of one factor changes when another is switched. In a fraction some cannot be told from "
        "others: the number is that of their weighted sum, which the table names. Interactions of three factors are "
        "taken to be zero."
    ),
    "Over training": (
        "The end is the last evaluation in the loop. Intervals tell an effect where that at the end leaves out 0, and "
        "the order of two where theirs there do not overlap: these are clear, the sign and order of the others mostly "
        "chance. The rank correlation is Spearman's, of all effects. Verdicts, as 'better', are corrected at each step "
        "as at the end."
    ),
    "Time per image": (
        "The inverse of images per second. An effect on it is one on its logarithm, shown as a ratio in percent: over "
        "several runs it is that of geometric means, and its interval is longer on one side. It compares core- or "
        "GPU-hours only where all runs had as many cores or GPUs."
    ),
    "On the front": (
        "No other cell has a value as good at a cost as low, and one of the two better. The share is that of resamples "
        "of the seeds in which a cell is on the front; the same seeds are drawn for all cells. With fewer than ten "
        "seeds it is too sure of itself. Both are of the seeds that all cells without failures share."
    ),
    "Hours to a value": (
        "Those until a run's learning curve first has the value, on straight lines between its evaluations in the "
        "loop, at its own images per second. A run that never has it counts as longer than all others: the median of a "
        "cell is the fewest hours in which half of its runs have it (Kaplan-Meier), and there is none where fewer do. "
        "The ratio to the reference is paired by seed, and given where all runs of both have the value."
    ),
    "Attribution": (
        "Shapley values: the mean change that switching a factor makes, over all orders in which the factors can be "
        "switched, so that the shares add up to the gap. Combinations that were not run are filled in by the model of "
        "main effects and two-factor interactions. Shares are tested as main effects are, the gap itself by a paired t "
        "test; the bootstrap over seeds stands beside the intervals and is too short below ten seeds."
    ),
}
