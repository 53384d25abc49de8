"""The grid that teacher and student share, the statistics of the crops, and what freezing means."""

import pytest
import torch
from colour_teacher import ColourTeacher
from torch import Tensor
from torch.nn import functional

from dinoswap.da3.frozen import FrozenTeacher, GridMatching
from dinoswap.teacher.base import IMAGENET_MEAN, IMAGENET_STD, Teacher


def frozen(teacher: Teacher, grid_matching: GridMatching = "resize_image", pool: int = 2) -> FrozenTeacher:
    return FrozenTeacher(teacher, IMAGENET_MEAN, IMAGENET_STD, grid_matching, pool)


def crops(height: int = 32, width: int = 48, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def patch_means(images: Tensor, rows: int, columns: int) -> Tensor:
    """Mean colour of each cell of a rows x columns grid, by a loop over the cells: [n, rows columns, 3]."""
    height, width = images.shape[-2] // rows, images.shape[-1] // columns
    cells = [
        images[:, :, r * height : (r + 1) * height, c * width : (c + 1) * width].mean((2, 3))
        for r in range(rows)
        for c in range(columns)
    ]
    return torch.stack(cells, dim=1)


@pytest.mark.parametrize("matching", ["resize_image", "pool", "resize_tokens"])
def test_equal_patches_need_no_resampling(matching: GridMatching) -> None:
    """Student and teacher with patches of 8: a token is the mean of its patch (pool=1)."""
    images = crops()
    tokens = frozen(ColourTeacher(8), matching, pool=1)(images, (4, 6))
    assert torch.allclose(tokens, patch_means(images, 4, 6), atol=1e-6)


def test_the_image_is_resized_to_the_students_grid() -> None:
    teacher, images = ColourTeacher(14), crops(224, 224, count=1)
    tokens = frozen(teacher)(images, (14, 14))
    assert teacher.seen == [(1, 3, 196, 196)]
    smaller = functional.interpolate(images, (196, 196), mode="bicubic", antialias=True)
    assert torch.allclose(tokens, patch_means(smaller, 14, 14), atol=1e-6)


def test_pool_averages_the_tokens_of_a_larger_image() -> None:
    teacher, images = ColourTeacher(14), crops(32, 48)
    tokens = frozen(teacher, "pool", pool=3)(images, (4, 6))
    assert teacher.seen == [(2, 3, 4 * 3 * 14, 6 * 3 * 14)]
    larger = functional.interpolate(images, (168, 252), mode="bicubic", antialias=True)
    assert torch.allclose(tokens, patch_means(larger, 4, 6), atol=1e-5)


def test_resized_tokens_lie_where_the_students_patches_do() -> None:
    """A colour that rises linearly over the image does so over the tokens, sampled at the centres of the patches."""
    ramp = torch.linspace(0, 1, 225)[:-1] + 0.5 / 224  # the value at the centre of each pixel's column
    images = ramp.expand(1, 3, 224, 224)
    teacher = ColourTeacher(14)
    tokens = frozen(teacher, "resize_tokens")(images, (14, 14))
    assert teacher.seen == [(1, 3, 224, 224)]
    columns = tokens.unflatten(1, (14, 14))[0, 0, :, 0]
    assert torch.allclose(columns, (torch.arange(14) + 0.5) / 14, atol=1e-5)


@pytest.mark.parametrize(("side", "given"), [(32, 28), (35, 42), (34, 28), (5, 14), (224, 224)])
def test_resize_tokens_takes_the_nearest_multiple_of_the_patch(side: int, given: int) -> None:
    teacher = ColourTeacher(14)
    tokens = frozen(teacher, "resize_tokens")(crops(side, side, count=1), (4, 4))
    assert teacher.seen == [(1, 3, given, given)]
    assert tokens.shape == (1, 16, 3)


class Wrong(ColourTeacher):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, 1:]


@pytest.mark.parametrize("matching", ["resize_image", "pool", "resize_tokens"])
def test_another_number_of_tokens_is_refused(matching: GridMatching) -> None:
    with pytest.raises(ValueError, match=r"tokens an image and the student has 4 x 6"):
        frozen(Wrong(), matching)(crops(), (4, 6))


def test_a_teacher_with_other_statistics_sees_the_same_pixels() -> None:
    """Pixels p in 0..1 are (p - m) / s for the student and (p - .5) / .25 for this teacher."""
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    normalised = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    teacher = ColourTeacher(8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    wrapped = FrozenTeacher(teacher, (0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
    assert torch.allclose(wrapped(normalised, (4, 6)), patch_means((pixels - 0.5) / 0.25, 4, 6), atol=1e-5)


def test_always_in_evaluation_mode_without_gradients() -> None:
    wrapped = frozen(ColourTeacher())
    wrapped.train()
    assert not wrapped.training
    assert not wrapped.network.training
    assert not any(parameter.requires_grad for parameter in wrapped.parameters())
    assert not wrapped(crops().requires_grad_(), (4, 6)).requires_grad


class Product(ColourTeacher):
    """A matrix product, which autocast would round."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) @ torch.eye(3, device=images.device)


def test_float32_under_the_trainers_autocast_unless_asked_otherwise() -> None:
    images = crops()
    exact = patch_means(images, 4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = frozen(Product())(images, (4, 6))
        rounded = FrozenTeacher(Product(), IMAGENET_MEAN, IMAGENET_STD, precision="bf16")(images, (4, 6))
    assert torch.allclose(full, exact, atol=1e-6)
    assert rounded.dtype == torch.float32
    assert 1e-4 < (rounded - exact).abs().max() < 1e-2


def test_no_pool_below_one() -> None:
    with pytest.raises(ValueError, match="pool=0: must be at least 1"):
        frozen(ColourTeacher(), "pool", pool=0)


def test_the_side_of_the_teachers_input_can_be_chosen() -> None:
    """Coarse tokens of a larger image, spread over the student's grid: each 2 x 2 of the centre lies between four."""
    teacher, images = ColourTeacher(32), crops(32, 32, count=1)
    matched = FrozenTeacher(teacher, IMAGENET_MEAN, IMAGENET_STD, "resize_tokens", input_size=128)
    tokens = matched(images, (8, 8))
    assert teacher.seen == [(1, 3, 128, 128)]
    larger = functional.interpolate(images, (128, 128), mode="bicubic", antialias=True)
    coarse = patch_means(larger, 4, 4).unflatten(1, (4, 4))[0]
    # the second of eight centres lies at 1.5 / 8 of the side, a quarter of the way from the first of four to the next
    rows = 0.75 * coarse[0] + 0.25 * coarse[1]
    expected = 0.75 * rows[0] + 0.25 * rows[1]
    assert torch.allclose(tokens.unflatten(1, (8, 8))[0, 1, 1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("matching", "size", "message"),
    [
        ("resize_tokens", 100, "input_size=100: must be a multiple of the teacher's 8, such as 96"),
        ("resize_tokens", 0, "input_size=0: must be a multiple"),
        ("resize_image", 64, "input_size=64: with grid_matching=resize_image"),
    ],
)
def test_sides_that_cannot_be(matching: GridMatching, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrozenTeacher(ColourTeacher(8), IMAGENET_MEAN, IMAGENET_STD, matching, input_size=size)
