"""Train the bundled demo model: a small Qwen3.5 trunk with an MTP head, on two CPU cores, in under five hours.

    pip install -e '.[train]'        # torch==2.13.0, transformers==5.23.0
    python scripts/train_demo.py --layers 8 --run build/eight --out build/eight/demo
    python scripts/train_demo.py --start-from build/eight/state.pt --run build/twelve --seed 1
    python scripts/train_demo.py --start-from build/twelve/state.pt --seed 2

The first command trains eight layers, the second twelve that start from those eight, the third the twelve again. Each
trains trunk and head together, then the head alone with the trunk frozen. A stopped run goes on with --resume.
The corpora are files that you download: GSM8K, ChatterBot and Taskmaster-4, in the folder that --corpora names.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

try:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging as transformers_logging
except ImportError as error:
    sys.exit(f"{error}. Training needs torch and transformers: pip install -e '.[train]'")

from demo_training.corpora import Corpus, load_corpus
from demo_training.evaluate import Score, evaluate, table
from demo_training.export import export, model_card, round_to_bf16
from demo_training.model import DemoModel, text_config
from demo_training.tokens import Rows, render, train_tokenizer, wrap_tokenizer
from demo_training.trainer import Plan, Trainer

REPO = Path(__file__).resolve().parents[1]
VOCABULARY = 4096
CORPORA, OUT, RUN = REPO / "build" / "corpora", REPO / "mlxmtp" / "demo", REPO / "build" / "demo"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train_demo",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--corpora", type=Path, default=CORPORA, help="folder of GSM8K, ChatterBot and Taskmaster-4")
    add("--out", type=Path, default=OUT, help="where the checkpoint goes")
    add("--run", type=Path, default=RUN, help="folder of the state to resume from")
    add("--resume", action="store_true", help="go on from the state in --run")
    add("--start-from", type=Path, help="state of a model with as many layers or fewer, to begin with its weights")
    add("--export-only", action="store_true", help="evaluate and write the state in --run as it is")
    add("--steps", type=int, default=1686, help="steps of trunk and head together")
    add("--head-steps", type=int, default=700, help="steps of the head alone")
    add("--minutes", type=float, help="shorten the joint phase, decay included, to end by then")
    add("--layers", type=int, default=12, help="trunk layers, every fourth of full attention")
    add("--rows", type=int, default=6, help="rows of text a step")
    add("--head-rows", type=int, default=1, help="of them, with head losses in the joint phase")
    add("--length", type=int, default=768, help="tokens a row, a multiple of 64")
    add("--seed", type=int, default=0, help="of the data's order and the first weights")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--save-every", type=int, default=150, help="steps between saved states")
    add("--no-compile", action="store_true", help="do without torch.compile, which needs a C++ compiler")
    arguments = parser.parse_args()
    if not (arguments.corpora / "gsm8k_train.jsonl").is_file():
        parser.error(f"no gsm8k_train.jsonl in {arguments.corpora}: name the corpora's folder with --corpora")
    return arguments


def prepare_tokenizer(arguments: argparse.Namespace, corpus: Corpus) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on the corpus, or that of the run that goes on."""
    path = arguments.run / "tokenizer.json"
    arguments.run.mkdir(parents=True, exist_ok=True)
    if arguments.start_from:
        shutil.copyfile(arguments.start_from.with_name("tokenizer.json"), path)
    if (arguments.start_from or arguments.resume or arguments.export_only) and path.is_file():
        return wrap_tokenizer(Tokenizer.from_file(str(path)))
    tokenizer = train_tokenizer(render(corpus.train), VOCABULARY)
    tokenizer.backend_tokenizer.save(str(path))
    return tokenizer


def prepare_trainer(arguments: argparse.Namespace, train: Rows) -> Trainer:
    plan = Plan(
        steps=arguments.steps,
        head_steps=arguments.head_steps,
        rows=arguments.rows,
        head_rows=arguments.head_rows,
        seed=arguments.seed,
        save_every=arguments.save_every,
        minutes=arguments.minutes,
    )
    model = DemoModel(text_config(VOCABULARY, arguments.layers))
    trainer = Trainer(model, train, plan, arguments.run / "state.pt")
    if arguments.resume or arguments.export_only:
        trainer.load()
    elif arguments.start_from:
        trainer.start_from(arguments.start_from)
    if not (arguments.no_compile or arguments.export_only):
        trainer.compile()
    return trainer


def card(arguments: argparse.Namespace, trainer: Trainer, scores: dict[str, Score]) -> str:
    progress = trainer.progress
    return model_card(
        millions=sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6,
        layers=arguments.layers,
        vocab=VOCABULARY,
        tokens=progress.tokens / 1e6,
        head_tokens=progress.head_tokens / 1e6,
        seed=arguments.seed,
        minutes=progress.seconds / 60,
        length=arguments.length,
        table=table(scores),
    )


def main() -> None:
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    corpus = load_corpus(arguments.corpora, arguments.seed)
    tokenizer = prepare_tokenizer(arguments, corpus)
    train = Rows(corpus.train, tokenizer, arguments.length)
    held_out = Rows(corpus.held_out, tokenizer, arguments.length)
    print(f"seed {arguments.seed}")
    print(f"tokens to train on: {train.sizes()}; held out: {held_out.sizes()}", flush=True)

    trainer = prepare_trainer(arguments, train)
    if not arguments.export_only:
        trainer.run()
    round_to_bf16(trainer.model)
    with torch.compiler.set_stance("force_eager"):  # other shapes than training's: not worth a compilation
        scores = evaluate(trainer.model, held_out, rows_per_kind=24)
    print(table(scores))
    export(trainer.model, tokenizer, arguments.out, card(arguments, trainer, scores))
    print(f"wrote {arguments.out} after {trainer.progress.seconds / 60:.0f} minutes of training")


if __name__ == "__main__":
    main()
