"""Configuration files that cannot be met: what each holds, and a part of the one line that says so."""

DEEP = "".join(f"{'  ' * depth}k{depth}:\n" for depth in range(60))

MALFORMED = {
    # no YAML
    "an open bracket": ("model: [", "line 1: not valid YAML"),
    "a tab": ("model:\n\tmodel_type: grid\n", "line 2: not valid YAML"),
    "a tag that is long": ("model: " + "!" * 100_000, "line 1: not valid YAML"),
    "two documents": ("model: {}\n---\nrunner: {}\n", "line 2: not valid YAML"),
    "a tag": ("model:\n  model_path: !!python/object/apply:os.system [ls]\n", "line 2: not valid YAML"),
    "a number of 5,000 digits": ("runner:\n  seed: " + "9" * 5000, "not valid YAML"),
    # no text
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "Cannot read the configuration"),
    "UTF-16": ("model: {}\n".encode("utf-16"), "Cannot read the configuration"),
    "Latin-1": ("model:\n  model_path: modèle\n".encode("latin-1"), "Cannot read the configuration"),
    "NUL bytes": (b"model: {}\n\0\0\0", "not valid YAML"),
    "a NUL in a path": ('runner:\n  output_dir: "run\\0"\n', "line 2: the text holds the character U+0000"),
    "half a character": ('model:\n  model_path: "\\ud800"\n', "line 2: the text holds the character U+D800"),
    "a terminal's escape": ('"\\e[2J": 1\n', "line 1: the text holds the character U+001B"),
    # too much
    "brackets without end": ("[" * 20_000, "nested too deeply"),
    "sections without end": (DEEP, "nested too deeply"),
    "a file without end": ("# and so on\n" * 100_000, "at most 131,072 characters"),
    "an alias": ("model: &a {}\nrunner: *a\n", "line 2: not valid YAML: aliases are not supported"),
    "a bomb": ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "line 2: not valid YAML: aliases"),
    # no configuration
    "a list": ("- model\n", "line 1: a configuration is made of sections"),
    "a word": ("pope\n", "line 1: a configuration is made of sections"),
    "a section that is a list": ("model: [grid]\n", 'line 1: "model" holds keys and values'),
    "a section that is a number": ("runner: 3\n", 'line 1: "runner" holds keys and values'),
    "a method's section that is a list": ("model:\n  model_type: grid\n  grid: [8]\n", 'line 3: "grid" is a section'),
    "a key that is a number": ("model:\n  1: 2\n", "line 2: a key has to be a plain word"),
    "a key that is a list": ("? [model]\n: {}\n", "line 1: a key has to be a plain word"),
    # keys
    "a key given twice": ("runner:\n  seed: 1\n  seed: 1\n", 'line 3: the key "seed" is given again (first on line 2)'),
    "a switch set both ways": (
        "model:\n  sparsezip:\n    skip_dynamic_k: false\n    skip_dynamic_k: true\n",
        'line 4: the key "skip_dynamic_k" is given again (first on line 3)',
    ),
    "an unknown section": ("modle: {}\n", 'line 1: the configuration has no key "modle". Did you mean "model"?'),
    "an unknown key": ("runner:\n  wramup: 3\n", 'section "runner" has no key "wramup". Did you mean "warmup"?'),
    "an unknown setting": ("model:\n  sparsezip:\n    k_mx: 2\n", 'line 3: sparsezip has no key "k_mx"'),
    "an unknown setting of a setting": (
        "model:\n  sparsezip:\n    merging:\n      kmeans_iter: 2\n",
        'line 4: sparsezip "merging" has no key "kmeans_iter". Did you mean "kmeans_iters"?',
    ),
    "settings of who does not run": ("model:\n  model_type: grid\n  sparsezip: {}\n", "line 3: settings of sparsezip"),
    # names
    "an unknown method": ("model:\n  model_type: sparsezap\n", 'line 2: There is no method "sparsezap". Did you mean'),
    "a pair the wrong way round": ("model:\n  model_type: fastv|visionzip\n", 'line 2: "fastv|visionzip" is no pair'),
    "a method's name that is long": (f"model:\n  model_type: {'a' * 100_000}\n", 'line 2: There is no method "aaaa'),
    "an unknown benchmark": ("runner:\n  dataset: popo\n", 'line 2: There is no benchmark "popo". Did you mean'),
    "a benchmark's file that is missing": ("runner:\n  dataset: nowhere.py\n", "line 2: There is no file nowhere.py"),
    "an unknown preset": ("runner:\n  prompt: lava\n", 'There is no prompt "lava". Did you mean "llava"?'),
    "an unknown runner": ("runner:\n  runner: rai\n", "line 2: runner.runner: Input should be 'local' or 'ray'"),
    "an unknown group": ("runner:\n  dataset: scenes\n  only: colour\n", '"colour"'),
    # values
    "a word for a number": ("runner:\n  limit: many\n", "line 2: runner.limit: Input should be a valid integer"),
    "a switch for a number": ("runner:\n  batch_size: true\n", "line 2: runner.batch_size"),
    "a number for a name": ("runner:\n  output_dir: 20250101\n", "line 2: runner.output_dir"),
    "a time for a number": ("runner:\n  limit: 1:30\n", "line 2: runner.limit: Input should be a valid integer"),
    "an octal number": ("runner:\n  limit: 010\n", "line 2: runner.limit: Input should be a valid integer"),
    "a no for a switch": ("model:\n  sparsezip: {dynamic_k: no}\n", "line 2: SparseZip: dynamic_k"),
    "a date for a number": ("model:\n  sparsezip: {k_min: 2025-01-01}\n", "line 2: SparseZip: k_min"),
    "a list of lists": ("model:\n  model_type: [[grid]]\n", "line 2: model.model_type"),
    "no method": ("model:\n  model_type: []\n", "line 2: model.model_type"),
    "no worker": ("runner:\n  runner: ray\n  workers: 0\n", "line 3: runner.workers"),
    "a limit below one": ("runner:\n  limit: 0\n", "line 2: runner.limit"),
    "no warm-up": ("runner:\n  warmup: 0\n", "line 2: runner.warmup"),
    "a seed beyond 64 bits": ("runner:\n  seed: 9223372036854775808\n", "line 2: runner.seed"),
    "a limit beyond counting": ("runner:\n  limit: 1" + "0" * 30, "line 2: runner.limit"),
    "infinity": ("model:\n  sparsezip: {tau_feat: .inf}\n", "line 2: SparseZip: tau_feat"),
    "not a number": ("model:\n  sparsezip: {cross_beta: .nan}\n", "line 2: SparseZip: cross_beta"),
    "sampling": ("model:\n  temperature: 0.7\n", "line 2: model.temperature: answers are decoded greedily"),
    "a budget in words": ("model:\n  budget: 192 and 64\n", "line 2: model.budget: a number of tokens"),
    "a sweep with a hole": ("model:\n  sparsezip: {cross_beta: '0,,1'}\n", "line 2: SparseZip: cross_beta"),
    # contradictions
    "a budget and a ratio": ("model:\n  budget: 64\n  keep_ratio: 0.5\n", "line 3: there is a budget as well"),
    "a budget for who takes none": ("model:\n  model_type: llava\n  budget: 64\n", "line 3: keep_all takes no budget"),
    "workers without Ray": ("runner:\n  workers: 4\n", "line 2: workers is for --runner ray"),
    "K below and above": ("model:\n  sparsezip: {k_min: 64, k_max: 32}\n", "line 2: SparseZip got k_min=64"),
    "a method twice": ("model:\n  model_type: [grid, grid]\n  budget: 8\n", "The method grid is asked for twice"),
    "a short form of nobody": (
        "model:\n  model_type: visionzip\n  retained_tokens: 64\n",
        'line 3: "retained_tokens" is a setting of sparsevlm',
    ),
}  # fmt: skip
