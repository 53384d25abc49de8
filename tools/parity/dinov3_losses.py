"""losses_dinov3*.npz: targets, DINO over pairs of crops, iBOT, KoLeo over neighbours and groups, Gram anchoring, on one
rank and on two."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.distributed import destroy_process_group, init_process_group
from torch.multiprocessing.spawn import spawn

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import construct_option
from dinoswap.gram.base import Negatives, Which, gram_loss, selected
from dinoswap.gram.snapshot import Resize, resized
from dinoswap.objectives.dino import LOCAL_WEIGHT
from dinoswap.objectives.koleo import koleo
from dinoswap.reduction.per_sample import PerSample
from dinoswap.targets.sinkhorn import SinkhornKnopp
from parity.losses import Given, check_sinkhorn, context, ibot, ibot_context
from parity.masks import WEIGHT, masks_weight
from parity.rows import (
    EXACT,
    FORWARD,
    Fixture,
    Row,
    Scenarios,
    compare,
    compare_gradient,
    draws_otherwise,
    is_left_out,
)

NEGATIVES: dict[str, Negatives] = {"": "keep", "_removeneg": "clear", "_removeteacherneg": "clear_teacher"}
GROUPS = {"all": None, "own": 6, "both": 12}
"""Name of a group of ranks -> images in it: a rank of the fixture has 6."""


def scenarios(path: Path) -> Scenarios:
    file = Fixture(path)
    checks: dict[str, Callable[[Fixture], Iterator[Row]]] = {
        "dino": check_dino,
        "ibot": check_ibot,
        "koleo": check_koleo,
        "gram": check_gram,
        "gram_select": check_selection,
        "two_ranks": partial(check_two_ranks, path=path),
    }
    on_cpu = {"two_ranks": {"its ranks are processes that compute on the CPU": draws_otherwise()}}
    return {
        name: partial(check, file)
        for name, check in checks.items()
        if file.below(f"{name}/") and not is_left_out(path, name, on_cpu.get(name, {}))
    }


def check_dino(file: Fixture) -> Iterator[Row]:
    """A stored loss is the mean over its pairs; what our term is multiplied by undoes the shares of all pairs."""
    yield from check_sinkhorn(file, "dino", file["dino/teacher_logits"].flatten(0, 1))
    two, local, three = (file[f"dino/student_{crops}"] for crops in ("global", "local", "three"))
    views = 2 * len(local)
    for name, pairs, globals_, locals_, term, factor in (
        ("local", "cross", two, local, "local", (2 + views) / views),
        ("global_ignore_diag", "cross", two, local, "global", (2 + views) / 2),
        ("global_with_diag", "all", two, local, "global", (4 + views) / 4),
        ("three_ignore_diag", "cross", three[:2], three[2:], None, 1.0),  # 2 pairs of globals, 2 of the third crop
        ("three_with_diag", "all", three[:2], three[2:], None, 1.0),
    ):
        crops = [x.clone().requires_grad_() for x in (globals_, locals_)]
        objective = option(f"objectives.dino.global_pairs={pairs}", "dino", file)
        terms = objective(context(*crops, two[0, :0], torch.zeros(2, two.shape[1], 1).bool(), {"teacher_temp": 1.0}))
        loss = factor * (terms[term] if term else terms["local"] + terms["global"])
        loss.backward()
        yield compare(f"loss_{name}", loss, file[f"dino/loss_{name}"], FORWARD, scale=1.0)
        used = crops[1:] if name == "local" else crops[:1] if term else crops
        gradient = torch.cat([x.grad for x in used if x.grad is not None])
        yield compare_gradient(f"grad_{name}", gradient, file[f"dino/grad_{name}"])
    weights = [objective.weight(term, {LOCAL_WEIGHT: 0.3}) for term in ("local", "global")]
    yield compare("weights by term", weights, [0.3, 1.0], EXACT)


def option(override: str, name: str, file: Fixture) -> Any:
    section = compose_config(["preset=dinov3", override])["objectives"][name]
    section = {key: value for key, value in section.items() if key != "targets"}
    targets = Given(file["dino/teacher_probs"].flatten(0, 1))
    return construct_option(section, f"objectives.{name}", targets=targets)


def check_ibot(file: Fixture) -> Iterator[Row]:
    yield from check_sinkhorn(file, "ibot", file["ibot/teacher_logits"])
    masks, student = file["ibot/masks"], file["ibot/student_logits"].requires_grad_()
    targets = file[f"ibot/sinkhorn_T{float(file.meta['teacher_temp']):g}"]
    loss = ibot(file, targets, PerSample())(ibot_context(student, masks))["masked"]
    loss.backward()
    for key in ("forward_masked", "forward_masked_weight_None"):
        yield compare(key, loss, file[f"ibot/{key}"], FORWARD, scale=1.0)
    yield compare_gradient("forward_masked_grad", student.grad, file["ibot/forward_masked_grad"], FORWARD)
    yield compare("masks_weight", masks_weight(masks.unflatten(0, (2, -1))), file["ibot/masks_weight"], WEIGHT)
    empty = SinkhornKnopp(iterations=3)(file["ibot/teacher_logits"][:0], 1.0)
    yield compare("sinkhorn_M0", empty, file["ibot/sinkhorn_M0"], EXACT)


def check_koleo(file: Fixture) -> Iterator[Row]:
    yield from value_and_gradient("", koleo, file["koleo/x"], file, "koleo/")
    for neighbours in (1, 2, 3):
        at = f"topk{neighbours}_"
        yield from value_and_gradient(
            at, partial(koleo, neighbours=neighbours, gather=True), file["koleo/x"], file, f"koleo_distributed/{at}"
        )


def value_and_gradient(
    name: str, loss_of: Callable[[Tensor], Tensor], x: Tensor, file: Fixture, at: str
) -> Iterator[Row]:
    x = x.clone().requires_grad_()
    loss = loss_of(x)
    loss.backward()
    yield compare(f"{name}loss", loss, file[f"{at}loss"], FORWARD, scale=1.0)
    yield compare_gradient(f"{name}grad", x.grad, file[f"{at}grad"])


def check_gram(file: Fixture) -> Iterator[Row]:
    student, teacher = file["gram/student"], file["gram/teacher"]
    for norm, (suffix, negatives), per_image in product(("norm", "nonorm"), NEGATIVES.items(), (True, False)):
        arguments: dict[str, Any] = {"normalise": norm == "norm", "negatives": negatives}
        shape = (len(student), -1) if per_image else (1, -1)

        def loss_of(x: Tensor, shape: Any = shape, arguments: dict[str, Any] = arguments) -> Tensor:
            matrices = (tokens.flatten(0, 1).unflatten(0, shape) for tokens in (x, teacher))
            return gram_loss(*matrices, **arguments)

        name = f"{norm}{suffix}_imglevel{per_image}_"
        yield from value_and_gradient(name, loss_of, student, file, f"gram/{name}")
    flat, of_teacher = (x.flatten(0, 1)[:13] for x in (student, teacher))
    if "gram/flat13_loss" in file:
        joint = partial(gram_loss, normalise=True, negatives="keep")
        yield from value_and_gradient("flat13_", lambda x: joint(x[None], of_teacher[None]), flat, file, "gram/flat13_")


def check_selection(file: Fixture) -> Iterator[Row]:
    """Which tokens are compared, and how those of a finer grid become as many as the student's."""
    student, teacher = file["gram_select/student"], file["gram_select/teacher"]
    masks = file["gram_select/masks"].unflatten(0, (2, -1))
    batch = context(student[:, :, 0], student[:0, :, 0], student[0, 0, :0], masks, {}).batch
    for which in get_args(Which):
        for name, tokens in (("student", student), ("teacher", teacher.unflatten(0, student.shape[:2]))):
            ours = selected(which, tokens, batch)
            theirs = file[f"gram_select/{which}/{name}_patches"]
            yield compare(f"{which}/{name}", ours, theirs.reshape(ours.shape), EXACT)
    side, large_side = (round(x.shape[1] ** 0.5) for x in (teacher, file["gram_select/teacher_2x"]))
    for method, antialias in product(get_args(Resize), (False, True)):
        name = f"resize_{method}{'_antialias' * antialias}"
        ours = resized(file["gram_select/teacher_2x"], (large_side, large_side), (side, side), method, antialias)
        yield compare(name, ours, file[f"gram_select/{name}/teacher_patches"], FORWARD, scale=1.0)
        key = f"gram_select/{name}_masked/teacher_patches"
        if key in file:
            rows = selected("masked", ours.unflatten(0, student.shape[:2]), batch)
            yield compare(f"{name}_masked", rows, file[key], FORWARD, scale=1.0)


def check_two_ranks(file: Fixture, path: Path) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        spawn(of_rank, (path, Path(folder)), nprocs=2)
        for rank in (0, 1):
            ours = torch.load(Path(folder) / f"{rank}.pt", weights_only=True)
            for name, value in ours.items():
                theirs = file[f"two_ranks/rank{rank}/{name}"]
                compared = compare_gradient if name.endswith("_grad") else partial(compare, scale=1.0)
                yield compared(f"rank{rank}/{name}", value, theirs, tolerance=FORWARD)


def of_rank(rank: int, path: Path, folder: Path) -> None:
    """Writes what one of two ranks computes of its rows: targets over the rows of both, KoLeo in groups of all, of a
    rank's own, and of both ranks' images."""
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    file, at = Fixture(path), f"two_ranks/rank{rank}/"
    results = {
        f"{name}_sinkhorn": SinkhornKnopp(iterations=3)(file[at + name], float(file.meta["teacher_temp"]))
        for name in ("dino", "ibot")
    }
    for neighbours, (name, group) in product((1, 2), GROUPS.items()):
        x = file[f"{at}koleo_x"].requires_grad_()
        loss = koleo(x, gather=True, neighbours=neighbours, group=group)
        loss.backward()
        assert x.grad is not None
        results |= {
            f"koleo_topk{neighbours}_group_{name}_{k}": v for k, v in (("loss", loss.detach()), ("grad", x.grad))
        }
    torch.save(results, folder / f"{rank}.pt")
    destroy_process_group()
