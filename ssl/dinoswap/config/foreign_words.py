"""Translates the setting names of other trainers (Lightning, timm, transformers, torchtitan, the dino repositories) and
of earlier versions. It is only consulted for names that are no key, group or flag of dinoswap."""

import re

from dinoswap.config.moved import MOVED

EPOCHS = (
    "runs are counted in steps: trainer.max_steps, of data.batch_size images each; an epoch has (images of the data "
    "set) / data.batch_size of them"
)
RESUME = "nothing is to be set: the same command continues a run that was stopped, from its newest checkpoint"
START = "start=weights start.path=FILE begins from released weights, start=run start.path=RUN from a run of ours"
RANKS = "devices come from the launcher: torchrun --nproc-per-node N -m dinoswap.train distributed=ddp ..."
LOGGERS = (
    "tracker=tensorboard, wandb, mlflow or none, several as tracker=[tensorboard,wandb]; metrics.jsonl and run.json are"
    " written in any case"
)
CONFIG = "a preset or recipe is chosen by name (preset=official recipe=vits16), keys are set as key=value"
AMP = "trainer.precision=bf16, fp16, bf16_params or fp32"
CLASSES = "labels are used by evaluation only, and their number is found"
LEARNING_RATE = "schedule.base_lr, which schedule.lr_scaling scales with the batch"

_WORDS = {
    "lr learning_rate base_learning_rate max_lr blr": LEARNING_RATE,
    "min_learning_rate lr_min final_lr": "schedule.min_lr",
    "epochs max_epochs num_epochs num_train_epochs n_epochs epoch": EPOCHS,
    "steps iterations max_iterations max_iters num_steps total_steps max_train_steps train_steps": "trainer.max_steps",
    "warmup_epochs warmup_steps warmup_iters num_warmup_steps warmup_ratio warmup": "schedule.warmup",
    "resume resume_from resume_from_checkpoint ckpt checkpoint auto_resume no_resume": RESUME,
    "pretrained pretrained_weights finetune init init_from weights load_from": START,
    "wandb use_wandb logger mlflow comet report_to tensorboard": LOGGERS,
    "project wandb_project entity wandb_entity":
        "tracker.wandb.project, tracker.wandb.entity, with tracker=[tensorboard,wandb]",
    "output_dir out_dir save_dir log_dir logdir workdir work_dir output outputs": "results_dir",
    "name run_name exp_name experiment experiment_name exp": "study, the folder that the run lies in",
    "batch_size bs batch_size_per_gpu train_batch_size per_device_train_batch_size global_batch_size batchsize":
        "data.batch_size, the images of a step over all devices",
    "num_workers workers n_workers dataloader_num_workers train_workers": "data.workers",
    "data_path data_dir dataset_path train_path root data_root dataset_dir imagenet_path":
        "data=image_folder data.path=... (or data=parquet, webdataset, torchvision)",
    "dataset": "data=embedded, image_folder, parquet, webdataset or torchvision",
    "gpus devices num_gpus ngpus nproc_per_node world_size num_nodes accelerator strategy ddp fsdp": RANKS,
    "device": "trainer.device",
    "seed_everything random_seed manual_seed": "seed",
    "accumulate_grad_batches gradient_accumulation_steps accum_iter grad_accum": "trainer.accumulate",
    "gradient_clip_val max_grad_norm grad_clip clip_grad_norm": "optimizer.clip_grad",
    "amp fp16 bf16 mixed_precision use_fp16 dtype": AMP,
    "tf32 allow_tf32 use_tf32 float32_matmul_precision": "trainer.matmul_precision=high",
    "arch model_name backbone student_arch": "model.size, with model.patch_size",
    "img_size image_size input_size crop_size": "crops.global_size",
    "config config_file cfg_file yaml": CONFIG,
    "num_classes nb_classes": CLASSES,
    "save_every save_freq saveckp_freq save_steps checkpoint_interval checkpoint_freq": "trainer.checkpoint_every",
    "val_check_interval eval_steps eval_freq eval_interval eval_period": "trainer.eval_every",
    "log_interval print_freq log_freq logging_steps log_every_n_steps": "trainer.log_every",
    "drop_path_rate": "model.drop_path",
    "n_prototypes out_dim head_n_prototypes num_prototypes": "heads.dino_head.prototypes, heads.ibot_head.prototypes",
    "local_crops_number n_local_crops": "crops.local_number",
    "momentum_teacher ema ema_decay": "schedule.momentum",
    "optim": "optimizer: AdamW, whose betas, eps and clipping are keys",
    "compile torch_compile use_compile": "trainer.compile",
    "flip": "one change to a preset is the option or key itself, as in preset=legacy masking=block",
}  # fmt: skip
_MEANING = {word: meaning for words, meaning in _WORDS.items() for word in words.split()}

_SECTIONS = ("", "trainer", "training", "train", "optimizer", "optim", "data", "dataset")
"""The sections in which other trainers have these keys."""
_NUMBERS = {
    "weight_decay": "schedule.weight_decay",
    "layer_decay": "layer_decay.rate",
    "masking": "masking.mask_ratio_min_max",
    "clustering": "objectives.clustering.loss_weight",
    "da3": "da3.loss_weight",
    "gram": "objectives.gram.loss_weight",
    "resolution": "crops.global_size",
}
"""Maps a group to the key that is meant when the group is given a number."""


def meaning(setting: str) -> str:
    """Returns how a key or flag of another tool or of an earlier version is called in dinoswap, as the end of a
    sentence; "" when it is not known. `setting` is the name, or the name, = and a value."""
    name, *value = setting.lstrip("-+").split("=", 1)
    if name in MOVED:
        return f" Here: {'='.join([MOVED[name], *value])}."
    section, _, last = name.lower().replace("-", "_").rpartition(".")
    advice = START if name == "start.path" else _MEANING.get(last)
    known = section in _SECTIONS or (section in ("model", "start") and advice == START)
    return f" Here: {advice}." if advice and known else ""


def meaning_of_value(group: str, value: str) -> str:
    """Returns, as the end of a sentence, which key is meant when a group is given a number or a path in place of an
    option; "" when no key is."""
    if group in _NUMBERS and re.fullmatch(r"[-+\d.eE]+", value):
        return f" The number is {_NUMBERS[group]}={value}."
    if group == "data" and ("/" in value or "." in value):
        return f" A folder of images is data=image_folder data.path={value}."
    return ""
