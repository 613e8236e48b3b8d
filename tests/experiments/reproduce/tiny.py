"""Tasks that train in seconds."""

TEXT = """
title: Linear system
metric: {name: loss, title: squared error}
note: What to expect.
config:
  data:
    class_path: lightning_stable.datamodules.LinearSystemDataModule
    init_args: {length: 12, train_size: 64, valid_size: 16, test_size: 16}
  model:
    class_path: lightning_stable.models.SequenceRegressor
    init_args: {input_size: 4, output_size: 2, hidden_size: 8}
  trainer:
    accelerator: cpu
    max_epochs: 2
    enable_progress_bar: false
    enable_model_summary: false
    callbacks: []
stable:
  trainer:
    callbacks:
    - class_path: lightning_stable.callbacks.StabilityProjectionCallback
      init_args: {rate: 0.5, input_bound: 5.0}
input_bound: {class_path: lightning_stable.stability.SupNorm, init_args: {bound: 5.0}}
windows: [3]
cells:
  rnn: {seconds: 10}
  lstm: {seconds: 10}
baselines:
  tcn: {seconds: 5, always: true, config: {model: {init_args: {kernel_size: 2}}}}
budgets:
  small: {}
  paper: {}
published:
- {core: rnn, value: 0.5, source: Somebody, status: recalled, stable: true}
floor: 1.0
"""

# A text of which an epoch reads a part.
WORDS = """
title: Words
metric: {name: loss, title: nats}
config:
  data:
    class_path: lightning_stable.datamodules.TextDataModule
    init_args: {batch_size: 4, eval_batch_size: 2, chunk_length: 5, vary_length: true}
  model:
    class_path: lightning_stable.models.LanguageModel
    init_args: {vocab_size: data.vocab_size, hidden_size: 8, embedding_size: 8, dropout: 0.5, input_dropout: 0.0}
  optimizer:
    class_path: torch.optim.Adam
    init_args: {lr: 0.05}
  trainer:
    accelerator: cpu
    max_epochs: 4
    limit_train_batches: 4
    num_sanity_val_steps: 0
    enable_progress_bar: false
    enable_model_summary: false
    callbacks: []
cells:
  gru: {seconds: 10}
budgets:
  small: {}
  paper: {}
"""

# With what a run that goes on can get wrong.
DELICATE = """
title: Linear system
metric: {name: loss, title: squared error}
config:
  data:
    class_path: lightning_stable.datamodules.LinearSystemDataModule
    init_args: {length: 12, train_size: 64, valid_size: 16, test_size: 16, batch_size: 16}
  model:
    class_path: lightning_stable.models.SequenceRegressor
    init_args: {input_size: 4, output_size: 2, hidden_size: 8, dropout: 0.5}
  optimizer:
    class_path: torch.optim.Adam
    init_args: {lr: 0.05}
  lr_scheduler:
    class_path: lightning.pytorch.cli.ReduceLROnPlateau
    init_args: {monitor: val_loss, factor: 0.5, patience: 0, threshold: 0.1}
  trainer:
    accelerator: cpu
    max_epochs: 5
    gradient_clip_val: 1.0
    num_sanity_val_steps: 0
    enable_progress_bar: false
    enable_model_summary: false
    callbacks:
    - class_path: lightning.pytorch.callbacks.EMAWeightAveraging
      init_args: {decay: 0.5}
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args: {monitor: val_loss, patience: 4}
stable:
  trainer:
    callbacks:
    - class_path: lightning_stable.callbacks.StabilityProjectionCallback
      init_args: {rate: 0.5, input_bound: 5.0}
input_bound: {class_path: lightning_stable.stability.SupNorm, init_args: {bound: 5.0}}
cells:
  rnn: {seconds: 10}
  lstm: {seconds: 10}
budgets:
  small: {}
  paper: {}
"""
