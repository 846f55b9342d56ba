"""Descriptions of parameters that several docstrings share: ``%(name)s`` in a docstring."""

from docrep import DocstringProcessor

docs = DocstringProcessor(
    adata="""
adata
    Cells registered with :meth:`setup_anndata`.""".strip(),
    ignore_case="""
ignore_case
    Compare gene names without regard to case.""".strip(),
    any_adata="""
adata
    Any AnnData: counts, linear or log1p values; genes in any order, matched by name; it may be
    backed, and is not changed. Default: the cells that the model was set up with.
layer
    Layer with the values ("raw" for ``.raw``). Default: ``X``, or where it cannot be used ``raw``
    or a layer of counts.""".strip(),
    train="""
max_epochs
    Passes over the cells (over the larger of labelled and unlabelled ones, if a model takes
    both); of models that are no network, iterations of their solver at most. Default: the
    settings'.
accelerator, devices
    As in Lightning; "auto" takes a GPU if there is one. Regressions and k-means run on the CPU.
batch_size
    Cells per step, of labelled and of unlabelled ones each. Default: the settings'.
plan_kwargs
    Changes to the settings that concern training, such as ``{"lr": 1e-4}``.
enable_progress_bar
    Show progress bars, on stderr.
**trainer_kwargs
    Passed on to scvi-tools' ``Trainer``.""".strip(),
    train_raises="""
TypeError
    ``plan_kwargs`` names an unknown setting, or nothing takes ``trainer_kwargs``.""".strip(),
)
