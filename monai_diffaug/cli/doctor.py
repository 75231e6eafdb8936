"""`diffaug doctor`: this machine and the shipped backbones, or one bundle, checkpoint or weight file."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monai_diffaug.cli.main import app, as_json

if TYPE_CHECKING:
    from monai_diffaug.backbones.diagnosis import Diagnosis

__all__ = ["about_machine"]


@app.command()
def doctor(
    path: Annotated[
        str | None,
        typer.Argument(help="A MONAI bundle, a checkpoint folder, a weight file or a backbone's name."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    trial: Annotated[bool, typer.Option(help="Measure the fast paths of this machine (some 5 seconds).")] = True,
) -> None:
    """Say what is wrong, and the line that mends it; without a path, of this machine and the backbones that are there.

    Exit code 1 if a fault was found.

    Examples:
      diffaug doctor
      diffaug doctor brain_mri
      diffaug doctor bundles/brats_mri_generative_diffusion --json
      diffaug doctor model.pt
    """
    from monai_diffaug.backbones.diagnosis import Diagnosis

    if path is None:
        diagnosis = Diagnosis("", "machine")
        about_machine(diagnosis, trial)
    else:
        from monai_diffaug.backbones.doctor import examine

        diagnosis = examine(path)
    if json:
        as_json(diagnosis.as_dict())
    else:
        print("\n".join(_machine_lines(diagnosis.facts) if path is None else _lines(diagnosis)))
        _print_findings(diagnosis)
    if diagnosis.faults:
        raise typer.Exit(1)


def about_machine(diagnosis: Diagnosis, trial: bool) -> None:
    """Versions, processor, fast paths, backbones and plug-ins, and what is amiss with any of them."""
    from monai_diffaug import registry
    from monai_diffaug.backbones import hub, machine

    facts = diagnosis.facts
    facts |= {"python": platform.python_version(), "system": platform.platform(), "packages": machine.versions()}
    for name, version in facts["packages"].items():
        if version is None and name != "openvino":
            diagnosis.fault("environment", f"{name} is not installed", f"pip install {name}")
    facts["machine"] = machine.processor()
    if trial:
        facts["fast_paths"] = {f"{dims}D": machine.fast_paths(dims) for dims in (2, 3)}
    facts["backbones"] = [_shipped(diagnosis, hub.WEIGHTS / name) for name in hub.shipped()]
    if not facts["backbones"]:
        diagnosis.remark(hub.WEIGHTS, "no backbone is shipped with this installation", "diffaug train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        facts["methods"], facts["plug_ins_passed_over"] = len(registry.listing()), registry.broken()
    for name, why in facts["plug_ins_passed_over"].items():
        diagnosis.fault(f"plug-in {name}", why, "mend it, or uninstall the package that it is in")


def _shipped(diagnosis: Diagnosis, folder: Path) -> dict[str, Any]:
    from monai_diffaug.backbones import weights
    from monai_diffaug.types import Contract

    before = len(diagnosis.faults)
    about: dict[str, Any] = {"name": folder.name, "folder": str(folder)}
    with diagnosis.noting(folder):
        contract = Contract.from_dict(weights.read_json(folder / "contract.json"))
        about |= {"license": contract.license, "data": contract.data, "modality": contract.modality}
        about |= {"size": list(contract.size), "labels": list(contract.labels)}
        if not contract.license:
            diagnosis.fault(folder / "contract.json", "license is empty", '"license": "..."')
        if not (folder / "digests.json").is_file():
            diagnosis.fault(
                folder, "digests.json is missing, so that the weights cannot be checked", "call hub.seal(folder)"
            )
        weights.verify(folder)
        about["digest"] = weights.digest(folder)
        about["bytes"] = sum(p.stat().st_size for p in weights.weight_files(folder).values())
    return {**about, "ok": len(diagnosis.faults) == before}


def _machine_lines(facts: dict[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {version or '-'}" for name, version in facts["packages"].items())
    here = facts["machine"]
    lines = [
        f"Python {facts['python']} on {facts['system']}",
        f"  {packages}",
        f"Machine: {here['device']}, {here['cpu']}, {here['cores']} cores, {here['threads']} torch threads, "
        f"{here['memory_gib']} GiB ({', '.join(here['instructions']) or 'no vector instructions that matter'})",
    ]
    for dims, paths in facts.get("fast_paths", {}).items():
        told = ", ".join(f"{name} x{factor:.1f}" for name, factor in paths.items() if name != "all but bfloat16")
        advice = (
            "--precision bfloat16 pays here"
            if paths["all"] > 1.15 * paths["all but bfloat16"]
            else "stay with float32 here"
        )
        lines.append(f"  {dims} against plain float32: {told}; {advice}")
    lines.append(f"Backbones: {len(facts['backbones'])} shipped")
    for b in facts["backbones"]:
        state = "intact" if b["ok"] else "FAULTY"
        size = f"{b.get('bytes', 0) / 2**20:.1f} MiB"
        lines.append(f"  {b['name']}: {state}, {b.get('modality', '?')}, {size}, license {b.get('license') or '?'}")
    return [*lines, f"Methods: {facts['methods']}"]


def _lines(diagnosis: Diagnosis) -> list[str]:
    facts = diagnosis.facts
    lines = [f"{diagnosis.path}: {diagnosis.kind}"]
    for w in facts.get("weights", []):
        about = f"{w['parameters']:,} parameters, names of {w['layout']}" if "layout" in w else "unreadable"
        wrapped = f", wrapped in {' > '.join(w['wrapped_in'])}" if w.get("wrapped_in") else ""
        lines.append(f"  {w['file']}: {w['bytes'] / 2**20:.2f} MiB, {about}{wrapped}")
        lines += [f"    fits {w['architecture']}"] if "architecture" in w and diagnosis.kind == "weights" else []
        lines += [f"    sha256 {w['sha256']}"] if "sha256" in w and diagnosis.kind == "weights" else []
    lines += [f"  {name}: {count} components" for name, count in facts.get("configs", {}).items()]
    for part in ("network", "autoencoder"):
        if part in facts:
            filled = f", filled from {facts[part]['weights']}" if "weights" in facts[part] else ""
            lines.append(f"  {part}: {facts[part].get('_target_', '?')}{filled}")
    if "schedule" in facts:
        noise = facts["schedule"]
        kind = "rectified flow" if noise["flow"] else "variance preserving"
        first, last = noise["log_snr"]
        told = f"{noise['steps']} steps, {kind}, predicts {noise['prediction']}, log-SNR {first:g} to {last:g}"
        lines.append(f"  schedule: {told}")
    for key in ("latent_scale", "value_range", "size", "offers", "digest"):
        if facts.get(key) is not None:
            value = ", ".join(map(str, facts[key])) if isinstance(facts[key], list) else facts[key]
            lines.append(f"  {key.replace('_', ' ')}: {value}")
    return lines


def _print_findings(diagnosis: Diagnosis) -> None:
    for f in diagnosis.findings:
        print(f"{f.level}: {f.where}: {f.what}" if f.where else f"{f.level}: {f.what}")
        if f.mend:
            print(f"  mend: {f.mend}")
    print(f"{len(diagnosis.faults)} faults" if diagnosis.faults else "no fault found")
