"""losses_legacy*.npz: the legacy trainer's targets, losses and gradients, run as training runs ours.

The heads are identities, so that logits stand where DINO and iBOT expect tokens. What a commit did is an option here:
iBOT's two normalisations, the modes of clustering, weights per sample. Of the gradients of clustering, the legacy step
throws away what the student's loss leaves in the bank, and never lets one reach the teacher: ours has none there.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.clustering.bank import LinearPrototypeBank
from dinoswap.clustering.masked import Masked
from dinoswap.clustering.patch_prototypes import PatchPrototypeLoss
from dinoswap.clustering.separate import Separate
from dinoswap.clustering.visible import Visible
from dinoswap.config.command_line import compose_config
from dinoswap.metric.diagnostics import entropy
from dinoswap.nn.vit import Tokens
from dinoswap.objectives.base import Context, Reduction
from dinoswap.objectives.ibot import IBOT
from dinoswap.objectives.koleo import koleo
from dinoswap.optim.schedules import cosine_then_constant
from dinoswap.reduction.per_sample import PerSample, masks_weight
from dinoswap.reduction.per_token import PerToken
from dinoswap.reduction.weighted_token_mean import WeightedTokenMean
from dinoswap.targets.sinkhorn import SinkhornKnopp
from dinoswap.targets.sinkhorn_floored import SinkhornFloored
from dinoswap.values import Features
from parity.losses import context, dino, flat_gradient
from parity.rows import EXACT, SCHEDULE, Fixture, Row, Scenarios, compare, compare_gradient

TOLERANCE = 1e-6  # of values relative to max(1, |value|), of gradients to the largest of their tensor
PATCH_TEMP, STUDENT_TEMP = 0.06, 0.1
FLOOR = 1e-8  # under a mass that divides
BANK_LR, BANK_BETAS = 0.5, (0.9, 0.95)

MODES: dict[str, type[PatchPrototypeLoss]] = {"visible": Visible, "separate": Separate}  # others are masked
ROUTES = {
    "clustering": ("student",),
    "arrangement": ("bank_weight", "bank_bias"),
    "koleo_proto": ("bank_weight",),
}


def scenarios(path: Path) -> Scenarios:
    file = Fixture(path)
    checks = {"dino": check_dino, "koleo": check_koleo, "ibot": check_weights, "proto": check_bank}
    sections = {key.split("/")[0] for key in file.file.files}
    named_checks: Scenarios = {name: partial(check, file) for name, check in checks.items() if name in sections}
    for section, check_case in {"ibot": check_ibot, "proto": check_clustering}.items():
        pattern = re.compile(rf"{section}/([0-9a-f]{{7}}/\w+)/")
        cases = dict.fromkeys(match[1] for key in file.file.files if (match := pattern.match(key)))
        named_checks |= {f"{section}_{case.replace('/', '_')}": partial(check_case, file, case) for case in cases}
    return named_checks


def close(name: str, ours: Tensor, theirs: Tensor) -> Row:
    return compare(name, ours, theirs, TOLERANCE, scale=1.0)


def check_dino(file: Fixture) -> Iterator[Row]:
    """The temperature's warm-up ends where the first iteration stored has the final one."""
    iterations, temps = file["dino/temp_iters"].tolist(), file["dino/temps"]
    warmup = min(i for i, temp in zip(iterations, temps.tolist(), strict=True) if temp == temps[-1])
    schedule = cosine_then_constant(float(temps[0]), float(temps[-1]), warmup)
    yield compare("temps", [schedule[i] for i in iterations], temps, SCHEDULE, scale=1.0)
    teacher = file["dino/teacher"]
    for steps in (3, 5):
        stored = file[f"dino/teacher_probs_{steps}_iterations_temp0.07"]
        yield close(f"teacher_probs_{steps}_iterations", SinkhornKnopp(iterations=steps)(teacher, 0.07), stored)
    ours = compose_config(["targets@objectives.dino.targets=sinkhorn"])["objectives"]["dino"]["targets"]
    yield compare("default_iterations", ours["iterations"], file["dino/default_ctor_n_iterations"], EXACT)
    for at in dict.fromkeys(key.split("/")[1] for key in file.file.files if re.match(r"dino/it\d+/", key)):
        yield from check_dino_step(file, at, schedule[int(at.removeprefix("it"))])


def check_dino_step(file: Fixture, at: str, temperature: float) -> Iterator[Row]:
    teacher = file["dino/teacher"].unflatten(0, (2, -1))  # [2 B, K] -> [2, B, K]
    views = file["dino/student"].unflatten(0, (-1, teacher.shape[1]))  # [V B, K] -> [V, B, K]
    student = views.requires_grad_()
    objective = dino(SinkhornKnopp(iterations=5), STUDENT_TEMP)
    nothing_masked = torch.zeros(2, teacher.shape[1], 1).bool()
    given = context(student[:2], student[2:], student[:0, 0], nothing_masked, {"teacher_temp": temperature})
    given = replace(given, teacher_features=Features(teacher, teacher[:0], teacher[:0, 0]))
    yield close(f"{at}/teacher_probs", objective.teacher_targets(given), file[f"dino/{at}/teacher_probs"])
    loss = torch.stack(list(objective(given).values())).sum()
    loss.backward()
    yield close(f"{at}/loss", loss, file[f"dino/{at}/loss"])
    yield compare_gradient(f"{at}/grad", flat_gradient(student), file[f"dino/{at}/grad_student"], TOLERANCE)


def check_koleo(file: Fixture) -> Iterator[Row]:
    """Duplicates push nobody here, and each other by the rounding of their distance there: their rows are left out."""
    for case in dict.fromkeys(key.split("/")[1] for key in file.file.files if key.startswith("koleo/")):
        x = file[f"koleo/{case}/x"].requires_grad_()
        loss = koleo(x)
        loss.backward()
        yield close(f"{case}/loss", loss, file[f"koleo/{case}/loss"])
        unique = [i for i, row in enumerate(x.tolist()) if x.tolist().count(row) == 1]
        assert x.grad is not None
        yield compare_gradient(f"{case}/grad", x.grad[unique], file[f"koleo/{case}/grad"][unique], TOLERANCE)


def check_weights(file: Fixture) -> Iterator[Row]:
    """1 / count, stored for each crop of the variable mask."""
    for section in ("ibot", "proto"):
        mask = file[f"{section}/mask_variable"]
        rows = mask.flatten().nonzero()[:, 0]
        stored = file[f"{section}/weight_per_sample"][rows // mask.shape[1]]
        yield close(f"{section}_weights", masks_weight(mask.unsqueeze(0), rows, torch.float32), stored)


def check_bank(file: Fixture) -> Iterator[Row]:
    """The bank's logits, and `<kind>_temp<temperature>[_<n>it|_eps0]` of each kind of stored logits."""
    teacher = functional.normalize(file["proto/teacher"].flatten(0, 1), dim=-1)
    yield close("teacher_logits_flat", stored_bank(file)(teacher, teacher).teacher, file["proto/teacher_logits_flat"])
    logits = {
        "targets": file["proto/teacher_logits_flat"],
        "big_targets": file["proto/big_logits"],
        "underflow_targets": file["proto/underflow_logits"],
    }
    pattern = re.compile(r"proto/(\w*targets)_temp([\d.]+)(?:_(\d+)it|_eps(0))?$")
    for key in file.file.files:
        if match := pattern.match(key):
            normaliser = SinkhornFloored(iterations=int(match[3] or 3), eps=0.0 if match[4] else FLOOR)
            yield close(key.removeprefix("proto/"), normaliser(logits[match[1]], float(match[2])), file[key])


def reduction_of(file: Fixture, section: str, case: str, mask: Tensor) -> Reduction:
    """Weights of 1 / count are an option's; arbitrary ones are stored; clustering without weights is a plain mean."""
    commit, name = case.split("/")
    fixed = commit == "b23df50"
    if not name.endswith("arbitrary"):
        plain = PerToken() if section == "proto" and "weight" not in name else WeightedTokenMean()
        return PerSample() if "weight" in name or (fixed and section == "ibot") else plain
    stored = file[f"{section}/{name[name.index('weight') :]}"]
    weight = stored.view(len(mask), -1).expand(mask.shape).flatten()  # of each token of each crop

    def weighted(losses: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        return (losses * weight[rows]).sum() / (len(mask) if fixed else len(losses))

    return weighted


def mask_of(file: Fixture, section: str, case: str) -> Tensor:
    """Bool [B, N]."""
    variable, bernoulli = (file[f"{section}/mask_{kind}"] for kind in ("variable", "bernoulli"))
    return variable & False if "zero_masked" in case else bernoulli if "bernoulli" in case else variable


def check_ibot(file: Fixture, case: str) -> Iterator[Row]:
    mask = mask_of(file, "ibot", case)
    student, teacher = file["ibot/student"].requires_grad_(), file["ibot/teacher"]
    given = patch_context(student, teacher, mask)
    objective = IBOT(
        SinkhornKnopp(iterations=3),
        reduction_of(file, "ibot", case, mask),
        head="ibot_head",
        loss_weight=1.0,
        student_temp=STUDENT_TEMP,
        pad_masked=None,
    )
    kind = "bernoulli" if "bernoulli" in case else "variable"
    if mask.any():
        yield close("teacher_probs", objective.teacher_targets(given), file[f"ibot/teacher_probs_{kind}"])
    loss = objective(given)["masked"]
    yield close("loss", loss, file[f"ibot/{case}/loss"])
    if mask.any():  # else theirs has none
        loss.backward()
        yield compare_gradient("grad_student", student.grad, file[f"ibot/{case}/grad_student"], TOLERANCE)


def patch_context(student: Tensor, teacher: Tensor, mask: Tensor) -> Context:
    """Of patch tokens [B, N, D] and one mask-carrying crop per image, bool [B, N]."""
    empty = torch.empty(2, len(mask), 0)
    given = context(empty, empty[:0], student[mask], mask.unsqueeze(0), {"teacher_temp": PATCH_TEMP})
    crops = torch.empty(1, len(mask), 3, 0, 0)
    return replace(
        given,
        batch=replace(given.batch, extra_crops=crops),
        student_features=Features(empty, empty[:0], student[mask], student.unsqueeze(0)),
        teacher_features=Features(empty, empty[:0], teacher[mask], teacher.unsqueeze(0)),
    )


# --- clustering -------------------------------------------------------------------------------------------------------


class UnmaskedPass(nn.Module):
    """A backbone whose tokens [b, N, D] are stored."""

    def __init__(self, patch: Tensor) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, crops: list[Tensor]) -> list[Tokens]:
        return [Tokens(self.patch[:, 0], None, self.patch)]


def stored_bank(file: Fixture) -> LinearPrototypeBank:
    weight = file["proto/bank_weight"]
    bank = LinearPrototypeBank(weight.shape[1], weight.shape[0], lr_multiplier=BANK_LR, betas=BANK_BETAS)
    bank.load_state_dict({"weight": weight, "bias": file["proto/bank_bias"]})
    return bank


def check_clustering(file: Fixture, case: str) -> Iterator[Row]:
    mask, bank = mask_of(file, "proto", case), stored_bank(file)
    student, teacher = (file[f"proto/{network}"].requires_grad_() for network in ("student", "teacher"))
    networks = nn.ModuleDict({"prototype_bank": bank, "backbone": UnmaskedPass(student)})
    given = replace(patch_context(student, teacher, mask), student=networks)
    mode = MODES.get(case.split("/")[1].split("_")[0], Masked)
    objective = mode(
        SinkhornFloored(iterations=3, eps=FLOOR),
        reduction_of(file, "proto", case, mask),
        loss_weight=1.0,
        prototypes=len(bank.weight),
        student_temp=STUDENT_TEMP,
        arrangement_weight=1.0,
        koleo_proto_weight=1.0,
        bank_lr_multiplier=BANK_LR,
        bank_betas=BANK_BETAS,
    )
    terms = objective(given)
    if not mask.any():  # theirs are constants, and ours go on but for the first
        yield close("clustering", terms["clustering"], file[f"proto/{case}/clustering"])
        return
    places = {"student": student, "teacher": teacher, "bank_weight": bank.weight, "bank_bias": bank.bias}
    for term, value in terms.items():
        yield close(term, value, file[f"proto/{case}/{term}"])
        gradients = torch.autograd.grad(value, list(places.values()), retain_graph=True, allow_unused=True)
        for place, gradient in zip(places, gradients, strict=True):
            name = f"grad/{term}/{place}"
            if place in ROUTES[term]:
                yield compare_gradient(name, gradient, file[f"proto/{case}/{name}"], TOLERANCE)
            else:
                yield compare(f"{name} (none)", float(gradient is not None), 0.0, EXACT)
    yield from check_use(file, case, objective, given)


def check_use(file: Fixture, case: str, objective: PatchPrototypeLoss, given: Context) -> Iterator[Row]:
    """At the selected positions: entropy of the student's predictions over ln K, and deviation of how often a
    prototype has a token's largest target, over the mean."""
    tokens, _, positions = objective.select(given)
    unit = functional.normalize(tokens, dim=-1)
    logits: Tensor = given.student["prototype_bank"](unit, unit).student
    prototypes = torch.tensor(float(logits.shape[1]))
    predicted = entropy((logits / STUDENT_TEMP).softmax(-1)).mean() / prototypes.log()
    yield close("entropy", predicted, file[f"proto/{case}/entropy"])
    targets = objective.teacher_targets(given)[positions]
    counts = targets.argmax(1).bincount(minlength=logits.shape[1]).float()
    yield close("usage_std", (counts / counts.mean()).std(), file[f"proto/{case}/usage_std"])
