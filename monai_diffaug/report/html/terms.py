"""What scores, sections and figures are called on the page, by the keys that the JSON files have for them."""

from __future__ import annotations

from .words import plain

__all__ = ["figure_of", "name_of", "section_of"]

# name of a score -> what it is called, and what it says
SCORES = {
    "fid": ("Fréchet distance (FID)", "how far apart the two sets lie, seen by the network"),
    "fid_infinity": ("FID at any number (FID∞)", "FID as it would be with images without end"),
    "mifid": ("FID against copies (MiFID)", "FID that grows where images are copies"),
    "kid": ("Kernel distance (KID)", "the same without FID's bias at small numbers"),
    "precision": ("Precision", "share of synthetic images that lie among real ones"),
    "recall": ("Recall", "share of real images that lie among synthetic ones"),
    "density": ("Density", "how densely real images surround the synthetic ones"),
    "coverage": ("Coverage", "share of real images that have a synthetic neighbor"),
    "vendi": ("Vendi score", "number of clearly different images"),
    "inception_score": ("Inception score", "variety of classes, each clearly recognized"),
    "perceptual_diversity": ("Perceptual diversity", "mean difference between two images, seen by the network"),
    "ssim_pairs": ("Likeness of pairs (SSIM)", "how alike two images of the set are"),
    "ms_ssim_pairs": ("Likeness of pairs (MS-SSIM)", "the same at several scales"),
    "ssim_to_source": ("Likeness to the source (SSIM)", "how alike an image and the real one that it was made of are"),
    "frd": ("Radiomics distance (FRD)", "how far apart texture and gray values lie"),
    "anatomy_body": ("Anatomy: size of the body", "distance in standard deviations"),
    "anatomy_dark_inside": ("Anatomy: dark inside", "distance in standard deviations"),
    "anatomy_symmetry": ("Anatomy: symmetry", "distance in standard deviations"),
    "anatomy_brain": ("Anatomy: size of the brain", "distance in standard deviations"),
    "anatomy_lung_fields": ("Anatomy: size of the lung fields", "distance in standard deviations"),
    "anatomy_lung_balance": ("Anatomy: left and right lung", "distance in standard deviations"),
    "anatomy_lesion": ("Anatomy: lesion size", "distance in standard deviations"),
    "share": ("Share of the images", "what part of all images the group is"),
    "share_corrected": ("Share, corrected", "the same, as a classifier that knows its errors sees it"),
    "discrepancy": ("Discrepancy of the shares", "how far the shares of all groups lie from those among real images"),
    "told_apart": ("Told apart", "how well a classifier tells the groups of synthetic images; 0.5 is chance"),
    "auroc": ("AUROC", "area under the receiver operating characteristic"),
    "auprc": ("AUPRC", "area under the precision-recall curve"),
    "f1": ("F1", "harmonic mean of precision and recall"),
    "iou": ("IoU", "overlap over union"),
    "map": ("mAP", "mean average precision of boxes"),
}  # fmt: skip

_SECTIONS = {
    "copies": ("Copies", "Is a synthetic image a copy of a training image, also shifted, mirrored or brightened?"),
    "reidentification": ("Re-identification", "Is a patient recognized in a synthetic image?"),
    "membership": ("Membership", "Can it be told whether a patient's images were used for training?"),
    "extraction": ("Extraction", "Do training images come out when very many images are made?"),
    "attributes": ("Attributes", "Does an image give away sex, age or site of the patient it was made of?"),
    "fairness": ("Fairness", "Are groups of patients served equally well?"),
}


def name_of(key: str) -> tuple[str, str]:
    """What a score is called, and what it says."""
    base, planes = key.removesuffix("_2.5d"), key.endswith("_2.5d")
    called, says = SCORES.get(base, (plain(base), ""))
    return (f"{called}, slices" if planes else called), (f"{says}; slices of three planes" if planes else says)


def section_of(key: str) -> tuple[str, str]:
    """What a section of the audit is called, and its question."""
    return _SECTIONS.get(key, (plain(key), ""))


_FIGURES = {
    "copies": "Images that repeat a training image",
    "certain_copies": "Images that repeat one for certain",
    "repeated_training_images": "Training images that are repeated",
    "false_alarms": "Real images of others taken for copies",
    "recognized": "Images in which a patient is recognized",
    "recognized_unseen": "The same of real images of others",
    "verifier_auroc": "How well the network knows patients again, AUROC",
    "simple_statistics_auroc": "Told by gray values alone, without the model, AUROC",
    "samples": "Samples drawn",
    "samples_over_training": "Samples for each training image",
    "clusters": "Clusters of samples that are nearly alike",
    "clustered_samples": "Samples in such clusters",
    "copied_samples": "Samples that repeat a training image",
    "extracted_images": "Training images that came out",
}
_ATTACKS = {"loss": "by loss", "ratio": "by likelihood ratio"}
_MEASURES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "tpr_at_1": "members found at 1 % false alarms",
    "tpr_at_01": "members found at 0.1 % false alarms",
}
_GUESSED = {"training": "of training patients", "unseen": "of patients never seen", "leak": "difference of the two"}
_BEGINNINGS = {
    "planted_": "Planted copies found, {}",
    "nearer_": "Nearer to training than to unseen images, by {}",
    "c_t_z_": "Test of copying by {}, z",
    "c_t_p_": "Test of copying by {}, p",
}


def figure_of(key: str) -> str:
    """What a figure of the audit is called."""
    if key in _FIGURES:
        return _FIGURES[key]
    for beginning, called in _BEGINNINGS.items():
        if key.startswith(beginning):
            return called.format(key.removeprefix(beginning).replace("_", " "))
    first, _, rest = key.partition("_")
    if rest in _MEASURES and first in _ATTACKS:
        return f"Attack {_ATTACKS[first]}, {_MEASURES[rest]}"
    if rest.startswith("gap_"):
        return f"Gap between groups by {first}: {name_of(rest.removeprefix('gap_'))[0]}"
    if rest.startswith("repeated_"):
        return f"Training images repeated, {first}: {rest.removeprefix('repeated_') or 'not known'}"
    attack, _, whose = rest.rpartition("_")
    if whose in _GUESSED and attack:
        how = "a classifier" if attack == "classifier" else f"the {attack} image"
        return f"{plain(first)} guessed from {how}, {_GUESSED[whose]}"
    return name_of(key)[0]
