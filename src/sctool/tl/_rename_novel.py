from __future__ import annotations

from anndata import AnnData

from sctool import _slots


def rename_novel(
    adata: AnnData, names: dict[str, str], *, key: str = "sctool", copy: bool = False
) -> AnnData | None:
    """Rename groups of novel cells to cell types.

    Renamed groups are treated as known types, so ``adata`` can serve as the reference in another
    call, with ``labels_key=key``. Groups given the same name, or the name of a known type, are
    merged.

    Parameters
    ----------
    adata
        Annotated by :func:`annotate`.
    names
        New name of each group, such as ``{"novel_1": "Mono_CD16"}``.
    key
        The ``key_added`` passed to :func:`annotate`.
    copy
        Return a modified copy and leave ``adata`` unchanged.

    Returns
    -------
    None, or the modified copy if ``copy=True``. The following is written:

    ``obs[key]``, ``obsm[f"{key}_proba"]``, ``uns[key]["classes"]``
        With the new names; probabilities of merged groups are summed.
    ``obs[f"{key}_score"]`` : float32
        Probability of the assigned type after renaming.
    ``obs[f"{key}_novel_score"]`` : float32
        Total probability of the groups that have not been renamed; 1 - score if there are none.
    ``obs[f"{key}_novel"]`` : bool
        Cells in groups that have not been renamed.
    ``obs[f"{key}_status"]``
        Cells of renamed groups are "assigned" instead of "novel".
    ``obs[f"{key}_pooled"]``, ``obsm[f"{key}_set"]``
        With the new names, if they exist. ``obs[f"{key}_safe"]`` stays as it is.
    ``uns[key]``
        ``novel_classes`` and ``novel`` without the renamed groups; ``reasons`` without their cells;
        ``audit`` and ``renamed`` (new name by old) with the renaming. ``groups`` and ``alarms``
        stay as they are.

    Raises
    ------
    KeyError
        There is no annotation under ``key``, or one of its slots is missing.
    ValueError
        The annotation has no novel groups, ``names`` is not a dict or is empty, a group is not one
        of the novel ones, or a new name is not a string, is empty, or is that of a novel group.
    """
    if key not in adata.uns or key not in adata.obs:
        raise KeyError(f"key={key!r} is not an annotation in adata: call sctool.tl.annotate first.")
    novel = [str(name) for name in adata.uns[key].get("novel_classes", [])]
    if not novel:
        raise ValueError(f"The annotation {key!r} has no novel groups to rename.")
    for where, slot in (("obs", f"{key}_score"), ("obsm", f"{key}_proba")):
        if slot not in getattr(adata, where):
            raise KeyError(
                f"adata.{where}[{slot!r}] is missing, but renaming needs it: call "
                "sctool.tl.annotate again."
            )
    if not isinstance(names, dict) or not names:
        raise ValueError(
            f"names={names!r}: pass a dict with the new names of groups, such as "
            f"{{{novel[0]!r}: 'Mono_CD16'}}."
        )
    if unknown := [name for name in names if name not in novel]:
        raise ValueError(
            f"names: {unknown!r} are not novel groups of {key!r}; the novel groups are {novel!r}."
        )
    if bad := [name for name in names.values() if not isinstance(name, str) or not name.strip()]:
        raise ValueError(f"names: {bad!r} are not valid names: pass non-empty strings.")
    if taken := [name for name in names.values() if name in novel]:
        raise ValueError(
            f"names: {taken!r} are novel groups of {key!r}: pass names of cell types. To merge "
            "groups, give them the same new name."
        )
    target = _slots.writable(adata, copy)
    _slots.rename_novel(target, key, names)
    return target if copy else None
