"""Parameter descriptions shared by docstrings, inserted where these have ``%(name)s``."""

from docrep import DocstringProcessor

docs = DocstringProcessor(
    adata="""
adata
    Cells registered with :meth:`setup_anndata`.""".strip(),
    ignore_case="""
ignore_case
    Ignore case when matching gene names.""".strip(),
    any_adata="""
adata
    Any AnnData with counts, linear or log1p values. Genes are matched by name. It may be backed
    and is not modified. Default: the cells that the model was set up with.
layer
    Layer with the values ("raw" for ``.raw``). Default: ``X`` or, if ``X`` is unusable, ``raw`` or
    a counts layer.""".strip(),
    train="""
max_epochs
    Number of passes over the cells (over the larger of the labelled and unlabelled sets if a model
    trains on both); for models other than networks, the maximum number of solver iterations.
    Default: from the settings.
accelerator, devices
    As in Lightning; "auto" uses a GPU if available. Regressions and k-means run on the CPU.
    Several devices share the minibatches of scNym, scDET, CICL and auto, in a script of yours.
batch_size
    Minibatch size of each device, for labelled and unlabelled cells each. Default: from the
    settings.
plan_kwargs
    Changes to the training settings, such as ``{"lr": 1e-4}``.
enable_progress_bar
    Show progress bars on stderr.
**trainer_kwargs
    Passed to scvi-tools' ``Trainer``.""".strip(),
    axes="""
ax
    Axes to draw on.""".strip(),
    show_save="""
show
    Whether to call :func:`matplotlib.pyplot.show`. Default: no.
save
    Whether to save the figure, or the end of the file's name, as in scanpy: in the folder
    :attr:`scanpy.settings.figdir`, with a name that begins with ``sctool_`` and the function's
    name.""".strip(),
    train_raises="""
TypeError
    ``plan_kwargs`` has an unknown setting, or ``trainer_kwargs`` an unknown argument.
ValueError
    A value is out of range; training diverged; or several devices are asked for, but the model
    cannot be trained on them.""".strip(),
)
