"""The official sets that can be converted: what they are, where they come from, and which choices they leave."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cxrjax.datasets import table
from cxrjax.datasets.manifest import Manifest


class Entry(NamedTuple):
    """What is known of a set before it is there.

    size: pictures and download. access: what is asked for before the download. options: name -> choices, the first is
    the default; they are arguments of the set's `manifest` and flags of the command.
    """

    title: str
    size: str
    licence: str
    access: str
    where: str
    options: Mapping[str, tuple[str, ...]] = MappingProxyType({})


SETS = {
    "chestxray14": Entry(
        "NIH ChestX-ray14, 14 text-mined findings, boxes",
        "112,120 PNG, 45 GB",
        "no restriction; name the NIH Clinical Center and cite Wang et al. 2017",
        "open",
        "nihcc.app.box.com/v/ChestXray-NIHCC, or Kaggle nih-chest-xrays/data",
    ),
    "nih_google": Entry(
        "ChestX-ray14 with labels by Google's radiologists: four findings, adjudicated, or all 14",
        "4,374 of the PNG of ChestX-ray14; all 14 findings of 810",
        "no restriction; as ChestX-ray14, and cite Majkowska et al. 2019 or Nabulsi et al. 2021",
        "a form of Google's",
        "cloud.google.com/healthcare-api/docs/resources/public-datasets/nih-chest (four_findings_expert_labels, "
        "all_findings_expert_labels), laid into the folder of ChestX-ray14",
        {"labels": ("four", "all")},
    ),
    "chexpert": Entry(
        "Stanford CheXpert, 14 observations with uncertain ones",
        "223,648 JPEG, 11 GB small or 439 GB full",
        "Stanford research use agreement, non-commercial",
        "registration",
        "stanfordmlgroup.github.io/competitions/chexpert; the 500 patients of its test, labelled by radiologists: "
        "test and test_labels.csv of CheXlocalize (stanfordaimi.azurewebsites.net), laid beside",
        {"test": ("valid", "radiologist")},
    ),
    "mimic_cxr": Entry(
        "MIMIC-CXR-JPG with reports, 14 observations, frontal and lateral",
        "377,110 JPEG, 570 GB (the DICOM original 4.7 TB)",
        "PhysioNet Credentialed Health Data License",
        "PhysioNet credentials and CITI training",
        "physionet.org/content/mimic-cxr-jpg (files, and the metadata, split and label tables); the reports "
        "(mimic-cxr-reports.zip, as it is) and the DICOM original are in physionet.org/content/mimic-cxr; phrases with "
        "boxes: MS_CXR_Local_Alignment_v1.1.0.csv of physionet.org/content/ms-cxr, laid beside",
        {"labels": ("chexpert", "negbio", "radiologist")},
    ),
    "rexgradient": Entry(
        "ReXGradient-160K, frontal and lateral with reports, of 79 sites",
        "273,004 PNG, 160,000 studies",
        "ReXGradient licence: non-commercial research",
        "Hugging Face account and agreement",
        "huggingface.co/datasets/rajpurkarlab/ReXGradient-160K (metadata/, and deid_png.part00 ... put together by cat "
        "and unpacked by tar)",
    ),
    "chexpert_plus": Entry(
        "CheXpert Plus, the radiographs of CheXpert with reports by section",
        "223,462 DICOM or PNG, 3.5 TB or 290 GB",
        "Stanford research use agreement, non-commercial",
        "registration",
        "stanfordaimi.azurewebsites.net (CheXpert Plus: df_chexpert_plus_240401.csv, DICOM or PNG, chexbert_labels)",
        {"labels": ("impression", "findings", "report")},
    ),
    "rsna_pneumonia": Entry(
        "RSNA Pneumonia Detection Challenge, lung opacity boxes, 3 classes",
        "26,684 DICOM, 4 GB",
        "RSNA terms: research, education and other use with attribution",
        "Kaggle account",
        "kaggle.com/c/rsna-pneumonia-detection-challenge (stage 2), and for the patients the table of the NIH names "
        "from the challenge's page at rsna.org (pneumonia-challenge-dataset-mappings_2018.json)",
        {"split": ("patient", "mgca_classification", "mgca_detection")},
    ),
    "siim_acr": Entry(
        "SIIM-ACR Pneumothorax Segmentation",
        "12,047 DICOM, 2 GB",
        "competition terms, non-commercial research",
        "Kaggle account",
        "kaggle.com/c/siim-acr-pneumothorax-segmentation (DICOM files, train-rle.csv or stage_2_train.csv)",
    ),
    "candid_ptx": Entry(
        "CANDID-PTX, masks of pneumothorax, acute rib fractures and chest tubes, reports",
        "19,237 DICOM, 28 GB",
        "data use agreement of the University of Auckland; cite Feng et al. 2021",
        "agreement and an online ethics course",
        "auckland.figshare.com, doi 10.17608/k6.auckland.14173982 (dataset, Pneumothorax_reports.csv, chest_tube.csv, "
        "acute_rib_fracture.csv)",
    ),
    "vindr_cxr": Entry(
        "VinDr-CXR / VinBigData, 28 labels (Kaggle 15), boxes of three readers and fused",
        "18,000 DICOM, 206 GB",
        "PhysioNet Credentialed Health Data License, or the competition terms",
        "PhysioNet credentials or Kaggle account",
        "physionet.org/content/vindr-cxr or kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection",
    ),
    "vindr_pcxr": Entry(
        "VinDr-PCXR, children, 15 diagnoses, boxes of 36 findings",
        "9,125 DICOM, 34 GB",
        "PhysioNet Credentialed Health Data License",
        "PhysioNet credentials",
        "physionet.org/content/vindr-pcxr",
    ),
    "brax": Entry(
        "BRAX, Brazilian radiographs, 14 observations with uncertain ones",
        "40,967 DICOM and PNG, 190 GB",
        "PhysioNet Credentialed Health Data License",
        "PhysioNet credentials",
        "physionet.org/content/brax (master_spreadsheet_update.csv, and Anonymized_DICOMs or images)",
    ),
    "tbx11k": Entry(
        "TBX11K, healthy, sick or tuberculosis, boxes of active and latent tuberculosis",
        "8,400 PNG with labels, 3 GB",
        "CC BY-NC-SA 4.0; cite Liu et al. 2020",
        "open",
        "mmcheng.net/tb (TBX11K.zip: imgs, annotations/json)",
    ),
    "covidx": Entry(
        "COVIDx CXR-3 (normal / pneumonia / COVID-19) and CXR-4",
        "30,386 PNG and JPEG, 30 GB; CXR-4 84,818",
        "mixed, of the sets that it gathers; CC BY-NC-SA and others",
        "Kaggle account",
        "kaggle.com/datasets/andyczhao/covidx-cxr2 (version 3, or the newest for CXR-4), lists: "
        "github.com/lindawangg/COVID-Net (labels)",
        {"variant": ("3A", "3B", "4"), "val": ("10", "20")},
    ),
    "montgomery": Entry(
        "Montgomery County tuberculosis set with lung masks",
        "138 PNG, 0.6 GB",
        "research and education; cite Jaeger et al. 2014",
        "open",
        "data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets (MontgomerySet)",
    ),
    "shenzhen": Entry(
        "Shenzhen tuberculosis set, readings, lung masks if they are there",
        "662 PNG, 3.6 GB",
        "research and education; cite Jaeger et al. 2014; masks CC BY-NC-SA 4.0",
        "open",
        "data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets (ChinaSet_AllFiles), "
        "masks: Kaggle yoctoman/shcxr-lung-mask",
    ),
    "jsrt": Entry(
        "JSRT nodules with the SCR masks of lungs, heart and clavicles",
        "247 raw pictures, 2 GB",
        "research use; cite Shiraishi et al. 2000, van Ginneken et al. 2006",
        "registration",
        "db.jsrt.or.jp (All247images, clinical information), masks: SCR database (scratch/fold1, fold2)",
    ),
    "object_cxr": Entry(
        "Object-CXR, foreign objects as rectangles, ellipses and polygons",
        "9,000 JPEG, 14 GB",
        "CC BY-NC 4.0",
        "open",
        "jfhealthcare.github.io/object-CXR (train.zip, dev.zip, both unpacked, train.csv, dev.csv)",
    ),
    "padchest": Entry(
        "PadChest, 174 findings, Spanish reports",
        "160,868 16-bit PNG, 1 TB",
        "PADCHEST dataset research use agreement",
        "registration",
        "bimcv.cipf.es/bimcv-projects/padchest (0.zip ... 54.zip, unpacked, and PADCHEST_chest_x_ray_...csv), "
        "sentences with boxes: grounded_reports_20240819.json and master_table.csv of "
        "bimcv.cipf.es/bimcv-projects/padchest-gr, laid beside",
        {"phrases": ("en", "es")},
    ),
    "iu_xray": Entry(
        "Indiana University / Open-i reports with frontal and lateral pictures",
        "7,470 PNG, 14 GB, and 3,955 reports",
        "CC BY-NC-ND 4.0",
        "open",
        "openi.nlm.nih.gov (NLMCXR_png, ecgen-radiology; projections: Kaggle's indiana_projections.csv, laid beside), "
        "Kaggle raddar/chest-xrays-indiana-university, or R2Gen's iu_xray",
    ),
}


def manifest(name: str, raw: Path, **options: str) -> Manifest:
    """Reads the official download of a set into a manifest; options as in the set's entry.

    Raises ValueError for an unknown set, option or choice, LayoutError for another folder than the official one.
    """
    if name not in SETS:
        raise ValueError(f"There is no official set {name!r}; known are {', '.join(SETS)}.")
    known = SETS[name].options
    for option, choice in options.items():
        if choice not in known.get(option, ()):
            choices = "; ".join(f"{key}: {', '.join(values)}" for key, values in known.items()) or "none"
            raise ValueError(f"{option}={choice!r} is no choice of set {name!r}; its options are: {choices}.")
    with table.remarks() as said:
        made = importlib.import_module(f"cxrjax.datasets.{name}").manifest(Path(raw), **options)
    return made._replace(remarks=(*said, *made.remarks))
