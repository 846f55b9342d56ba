from __future__ import annotations

from anndata import AnnData

from sctool import _slots


def rename_novel(
    adata: AnnData, names: dict[str, str], *, key: str = "sctool", copy: bool = False
) -> AnnData | None:
    """Give groups of novel cells the names of types.

    A renamed group is a type like any other: ``adata`` can then be the reference of another call,
    with ``labels_key=key``. Groups that get the same name become one; the name may be that of a
    known type.

    Parameters
    ----------
    adata
        Annotated by :func:`annotate`.
    names
        New name of each group, such as ``{"novel_1": "Mono_CD16"}``.
    key
        The ``key_added`` of :func:`annotate`.
    copy
        Return a changed copy and leave ``adata`` as it is.

    Returns
    -------
    None, or with ``copy=True`` the changed copy. Written:

    ``obs[key]``, ``obsm[f"{key}_proba"]``, ``uns[key]["classes"]``
        With the new names; probabilities of groups that became one are added up.
    ``obs[f"{key}_score"]`` : float32
        Probability under the new names.
    ``obs[f"{key}_novel"]`` : bool
        Cells of the groups that are not yet renamed.
    ``uns[key]``
        ``novel_classes`` and ``novel`` without the renamed groups; ``audit`` says who is who.

    Raises
    ------
    KeyError
        No annotation under ``key``.
    ValueError
        It found no novel groups, a group is not one of them, or a name is empty or no text.
    """
    if key not in adata.uns or key not in adata.obs:
        raise KeyError(f"key={key!r}: no annotation in adata; call sctool.tl.annotate first.")
    novel = [str(name) for name in adata.uns[key].get("novel_classes", [])]
    if not novel:
        raise ValueError(f"The annotation {key!r} has no novel groups (left) to rename.")
    if unknown := [name for name in names if name not in novel]:
        raise ValueError(f"names: {unknown!r} are no novel groups of {key!r}; it has {novel!r}.")
    if bad := [name for name in names.values() if not isinstance(name, str) or not name.strip()]:
        raise ValueError(f"names: {bad!r} cannot be names of types.")
    if taken := [name for name in names.values() if name in novel and name not in names]:
        raise ValueError(f"names: {taken!r} are other novel groups; name those too.")
    target = _slots.writable(adata, copy)
    _slots.rename_novel(target, key, names)
    return target if copy else None
