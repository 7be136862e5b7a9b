"""The commands as Python functions: `from llmkit import pretrain`.

Each function does what the command of its name does, in this process, and returns the object that
`--json` prints; messages and progress appear as in a terminal.

- `config` is a YAML file, and every key is a keyword, a section being a mapping:
  `pretrain("base.yaml", text="corpus.txt", train={"max_steps": 100}, seed=1)`. A key given twice is
  refused; keywords override the file. The parameters stand for keys as the options do: `text` and
  `csv` for the data, `model` for `model.name_or_path`. `data` and `model` take the section too.
- `quiet=True` shows warnings and errors only. `dry_run=True` checks everything, loads no weights,
  writes nothing, and returns what was found. `allow_code=True` allows the file in `model.code`.
- A fault of the input or the surroundings is an `llmkit.errors.LlmkitError` with `what`, `where`,
  `kept` and `next`. Other exceptions are bugs and pass unchanged. After Ctrl-C, or the interrupt of
  a notebook, the run is saved and KeyboardInterrupt raised; the same call resumes.
- The numbers are those of the command. Under torchrun, ranks share the work, and rank 0 has the
  predictions and texts.
- Environment variables, signal handlers, seeds and settings of torch, and logs of libraries are
  restored. Calls from several threads take turns.
"""
