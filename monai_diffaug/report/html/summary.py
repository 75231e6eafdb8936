"""The first half page: three questions and their answers; and what the report cannot say."""

from __future__ import annotations

from dataclasses import dataclass

from .origin import Origin
from .privacy import Privacy
from .realism import Readers, Scores
from .run import COMMANDS, Run
from .utility import Utility
from .words import BAD, CAUTION, GOOD, UNKNOWN, Verdict, count, wraps

__all__ = ["Question", "limitations", "questions"]


@dataclass(frozen=True)
class Question:
    """A question, its answer, and where more is said; ``command`` is what would answer it."""

    asks: str
    answer: Verdict
    where: str
    command: str = ""


def questions(
    scored: Scores | None, read: Readers | None, helped: Utility | None, leaked: Privacy, audited: bool
) -> list[Question]:
    """The three answers."""
    return [
        Question("Is it real?", _real(scored, read), "real", "" if scored or read else COMMANDS["scores"]),
        Question(
            "Does it help?",
            helped.verdict if helped else Verdict(UNKNOWN, "Not judged", "No study has shown whether training gains."),
            "help",
            "" if helped else COMMANDS["utility"],
        ),
        Question("Does it leak?", leaked.verdict, "leak", "" if audited else COMMANDS["audit"]),
    ]


def _real(scored: Scores | None, read: Readers | None) -> Verdict:
    """The worse of scores and readers; readers who tell them apart outweigh any score."""
    if scored is None and read is None:
        return Verdict(UNKNOWN, "Not judged", "Nobody has compared these images with real ones.")
    if read is None:
        assert scored is not None
        return Verdict(scored.verdict.mark, scored.verdict.word, f"{scored.verdict.says} No reader study.")
    if scored is None:
        return read.verdict
    order = [BAD, CAUTION, UNKNOWN, GOOD]
    worse = min((scored.verdict, read.verdict), key=lambda v: order.index(v.mark))
    return Verdict(worse.mark, worse.word, f"{scored.verdict.says} {read.verdict.says}")


def limitations(
    run: Run, made: Origin, scored: Scores | None, helped: Utility | None, leaked: Privacy, remarks: list[str]
) -> list[str]:
    """What this report cannot say: collected from all files, and what every such report must say."""
    found = ["Synthetic images are for training and research. None was acquired from a patient, none is for diagnosis."]
    if scored is not None:
        found.append(
            f"Scores compare {count(scored.n_made, 'synthetic image')} with {count(scored.n_real, 'real one')}. Within "
            "the floor means that these numbers of images show no difference; it does not mean that there is none."
        )
        if scored.skipped:
            found.append(f"{count(len(scored.skipped), 'file')} could not be read when scores were taken.")
    if helped is not None:
        found.append(
            "A gain in one study holds for its task, its network and its numbers of patients, and for no other."
        )
        found += [run.scrubbed(line) for line in run.parts["utility"].get("limitations", ())]
    found += leaked.limitations
    unknown = [s.name.lower() for s in leaked.sections if s.verdict.mark == UNKNOWN]
    if "audit" in run.parts:
        found += [f"Not judged by the audit: {wraps(unknown)}."] if unknown else []
        found.append("An audit finds the leaks that it looks for. It is no proof that there are none.")
    if made.n_patients and made.n_patients < 20:
        found.append(f"All images come from {count(made.n_patients, 'patient')}; they show no more variety than these.")
    return list(dict.fromkeys([*found, *remarks]))
