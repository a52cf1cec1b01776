"""Damaged official tables: every one ends in a manifest with its problems named, or in a sentence."""

import random
import traceback
from pathlib import Path

import pytest

from cxrjax.datasets import catalogue, manifest

UUID = "0004cfab-14fd-4e49-80ba-63a80b6bddd6"
HEX = "0005e8e3701dfb1dd93d53e2ff537b6e"
CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)
OBSERVATIONS = ",".join(sorted(CHEXPERT.strip().split(",")[5:]))
DICOM = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"

# Relative path -> text; builders open no picture, so pictures are empty files.
DOWNLOADS = {
    "candid_ptx": {
        "Pneumothorax_reports.csv": "filename,SOPInstanceUID,StudyInstanceUID,EncodedPixels,Report\n"
        'P1_1_0.dcm,1.2.3,1.2.9,1 2 3 4,"CHEST\nA small pneumothorax, on the left."\n'
        "P2_1_0.dcm,1.2.4,1.2.8,-1,Clear.\n",
        "acute_rib_fracture.csv": "anon_SOPUID,annotation_ref,mask_rle\n1.2.4,a,1 2\n",
        "chest_tube.csv": "anon_SOPUID,annotation_ref,mask_rle\n1.2.3,a,5 6\n1.2.4,b,-1\n",
        "dataset/1.2.3": "",
        "dataset/1.2.4": "",
    },
    "chestxray14": {
        "Data_Entry_2017_v2020.csv": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
        "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA,2682,2749,0.143,0.143\n"
        "00000002_000.png,No Finding,0,2,80,F,AP,2500,2048,0.171,0.171\n",
        "train_val_list.txt": "00000001_000.png\n",
        "test_list.txt": "00000002_000.png\n",
        "BBox_List_2017.csv": "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000001_000.png,Mass,225.0,547.0,86.7,79.1,,,\n",
        "images/00000001_000.png": "",
        "images/00000002_000.png": "",
    },
    "chexpert": {
        "CheXpert-v1.0-small/train.csv": CHEXPERT + "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
        ",Female,68,Frontal,AP,1.0,,,,,,-1.0,,0.0,,,,,\n",
        "CheXpert-v1.0-small/valid.csv": CHEXPERT + "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg"
        ",Male,73,Frontal,PA,0,1,1,1,0,0,0,0,0,0,0,0,0,0\n",
        "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg": "",
        "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg": "",
    },
    "mimic_cxr": {
        "mimic-cxr-2.0.0-metadata.csv": "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,"
        "Rows,Columns,StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
        f"PatientOrientationCodeSequence_CodeMeaning\n{DICOM},10000032,50414267,CHEST (PA AND LAT),PA,3056,2544,"
        "21800506,213014.531,CHEST,postero-anterior,Erect\n",
        "mimic-cxr-2.0.0-split.csv": f"dicom_id,study_id,subject_id,split\n{DICOM},50414267,10000032,train\n",
        "mimic-cxr-2.0.0-chexpert.csv": f"subject_id,study_id,{OBSERVATIONS}\n"
        "10000032,50414267,,,1.0,,,-1.0,,,,,0.0,,,\n",
        f"files/p10/p10000032/s50414267/{DICOM}.jpg": "",
        "files/p10/p10000032/s50414267.txt": " FINAL REPORT\n FINDINGS: \n \n Clear.\n\n IMPRESSION: \n \n Normal.\n",
    },
    "rexgradient": {
        f"{name}{part}{end}": text.replace("PART", part)
        for part in ("train", "valid", "test")
        for name, end, text in (
            (
                "metadata/",
                "_metadata_view_position.json",
                '{"GPART": {"PatientID": "PPART", "StudyInstanceUid": "1.PART", "PatientSex": "F",'
                '\n"PatientAge": "057Y", "Findings": "Clear.", "Impression": "Normal.",'
                '\n"ImagePath": ["../deid_png/P/PART.png"], "ImageViewPosition": ["PA"]}}',
            ),
            ("deid_png/P/", ".png", ""),
        )
    },
    "chexpert_plus": {
        "df_chexpert_plus_240401.csv": "path_to_image,frontal_lateral,ap_pa,age,sex,split,section_findings,"
        "section_impression,report\ntrain/patient00001/study1/view1_frontal.jpg,Frontal,AP,68.0,Female,train,Clear.,"
        "Normal.,Clear. Normal.\n",
        "chexbert_labels/impression_fixed.json": '{"path_to_image": "train/patient00001/study1/view1_frontal.jpg", '
        '"Edema": 1.0, "Fracture": null}\n',
        "PNG/train/patient00001/study1/view1_frontal.png": "",
    },
    "rsna_pneumonia": {
        "stage_2_train_labels.csv": f"patientId,x,y,width,height,Target\n{UUID},264.0,152.0,213.0,379.0,1\n",
        "stage_2_detailed_class_info.csv": f"patientId,class\n{UUID},Lung Opacity\n",
        f"stage_2_train_images/{UUID}.dcm": "",
    },
    "siim_acr": {
        "train-rle.csv": "ImageId, EncodedPixels\n1.2.276.1, 557374 2 1015 8\n1.2.276.2, -1\n",
        "dicom-images-train/1.1/1.2/1.2.276.1.dcm": "",
        "dicom-images-train/1.3/1.4/1.2.276.2.dcm": "",
    },
    "vindr_cxr": {
        "train.csv": "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        f"{HEX},Cardiomegaly,3,R9,691,1375,1653,1831\n{HEX},No finding,14,R11,,,,\n"
        f"{HEX},Cardiomegaly,3,R8,690,1370,1650,1830\n",
        f"train/{HEX}.dicom": "",
    },
    "vindr_pcxr": {
        "image_labels_train.csv": f"image_id,rad_ID,No finding,Pneumonia\n{HEX},R1,0,1\n",
        "image_labels_test.csv": f"image_id,rad_ID,No finding,Pneumonia\n{HEX[::-1]},R2,1,0\n",
        "annotations_train.csv": f"image_id,rad_ID,class_name,x_min,y_min,x_max,y_max\n{HEX},R1,Opacity,1,2,30,40\n",
        "annotations_test.csv": f"image_id,rad_ID,class_name,x_min,y_min,x_max,y_max\n{HEX[::-1]},R2,No finding,,,,\n",
        f"train/{HEX}.dicom": "",
        f"test/{HEX[::-1]}.dicom": "",
    },
    "brax": {
        "master_spreadsheet_update.csv": "DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,"
        f"ViewPosition,{OBSERVATIONS}\nAnonymized_DICOMs/id_1/Study_1/Series_1/image-1.dcm,"
        "images/id_1/Study_1/Series_1/image-1.png,1,F,057Y,2,PA" + ",1,0,-1" + "," * 11 + "\n",
        "images/id_1/Study_1/Series_1/image-1.png": "",
    },
    "tbx11k": {
        **{
            f"annotations/json/TBX11K_{part}.json": f'{{"images": [{{"id": 1, "file_name": "tb/{part}.png"}}],\n'
            '"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],\n'
            '"categories": [{"id": 1, "name": "ActiveTuberculosis"}]}'
            for part in ("train", "val")
        },
        "imgs/tb/train.png": "",
        "imgs/tb/val.png": "",
    },
    "covidx": {
        "train.txt": f"419639-003251 A-1.png COVID-19 ricord\n{UUID} {UUID}.png normal rsna\n",
        "test.txt": "7 nocov7.jpg pneumonia cohen\n",
        "train/A-1.png": "",
        f"train/{UUID}.png": "",
        "test/nocov7.jpg": "",
    },
    "montgomery": {
        "MontgomerySet/CXR_png/MCUCXR_0001_0.png": "",
        "MontgomerySet/ManualMask/leftMask/MCUCXR_0001_0.png": "",
        "MontgomerySet/ManualMask/rightMask/MCUCXR_0001_0.png": "",
        "MontgomerySet/ClinicalReadings/MCUCXR_0001_0.txt": "Patient's Sex: F\nPatient's Age: 027Y\nnormal\n",
    },
    "shenzhen": {
        "ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png": "",
        "ChinaSet_AllFiles/ClinicalReadings/CHNCXR_0001_0.txt": "male 45yrs\nnormal\n",
    },
    "jsrt": {
        **{f"All247images/JPCLN{number:03}.IMG": "" for number in range(1, 155)},
        **{f"All247images/JPCNN{number:03}.IMG": "" for number in range(1, 94)},
    },
    "object_cxr": {
        "train.csv": "image_name,annotation\n00001.jpg,0 10 20 30 40;2 1 1 9 1 9 9\n00002.jpg,\n",
        "dev.csv": "image_name,annotation\n08001.jpg,1 10 20 30 40\n",
        "train/00001.jpg": "",
        "train/00002.jpg": "",
        "dev/08001.jpg": "",
    },
    "padchest": {
        "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv": ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,"
        "PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,MethodProjection,PhotometricInterpretation_DICOM,"
        "Report,MethodLabel,Labels\n"
        "0,216840111366964012819207061112010307142602253_04-014-084.png,0,20140915,2014091,8391,1930.0,F,POSTEROANTERIOR,"
        "PA,Manual,MONOCHROME2,sin hallazgo,Physician,\"['pleural effusion', 'normal']\"\n",
        "0/216840111366964012819207061112010307142602253_04-014-084.png": "",
    },
    "iu_xray": {
        "indiana_reports.csv": "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
        "1,normal,normal,Xray Chest PA,Positive TB test,None.,The lungs are clear.,Normal chest.\n",
        "indiana_projections.csv": "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n",
        "images/images_normalized/1_IM-0001-4001.dcm.png": "",
    },
}
DOWNLOADS["nih_google"] = DOWNLOADS["chestxray14"] | {
    "four_findings_expert_labels/validation_labels.csv": "Image Index,Finding Labels,Patient ID,Fracture,Pneumothorax,"
    "Airspace opacity,Nodule or mass\n00000001_000.png,Mass,1,NO,YES,NO,YES\n",
    "four_findings_expert_labels/test_labels.csv": "Image Index,Finding Labels,Patient ID,Fracture,Pneumothorax,"
    "Airspace opacity,Nodule or mass\n00000002_000.png,Mass,2,YES,NO,,HEDGE\n",
}


def write(raw, files):
    for name, text in files.items():
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def damaged(text: str, rng: random.Random) -> bytes:
    """The text with one to three accidents: cut, bytes changed, lines or cells lost, doubled or swapped."""
    data = text.encode()
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("cut", "bytes", "line", "double", "cell", "swap", "encoding", "quote"))
        lines = data.split(b"\n")
        number = rng.randrange(len(lines))
        cells = lines[number].split(b",")
        place = rng.randrange(len(cells))
        if kind == "cut":
            data = data[: rng.randrange(len(data) + 1)]
        elif kind == "bytes":
            changed = bytearray(data)
            for _ in range(rng.randint(1, 8) if changed else 0):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            data = bytes(changed)
        elif kind == "line":
            data = b"\n".join(lines[:number] + lines[number + 1 :])
        elif kind == "double":
            data = b"\n".join(lines[: number + 1] + lines[number:])
        elif kind == "cell":
            cells[place] = rng.choice((b"", b"nan", b"-7", b"1e999", b"1e308", b"x", b"\xff\xfe", b"0 0", b'"', b"\0"))
            data = b"\n".join([*lines[:number], b",".join(cells), *lines[number + 1 :]])
        elif kind == "swap":
            rng.shuffle(cells)
            data = b"\n".join([*lines[:number], b",".join(cells), *lines[number + 1 :]])
        elif kind == "encoding":
            data = data.decode(errors="replace").encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")))
        else:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + b'"' + data[at:]
    return data


@pytest.mark.parametrize("name", catalogue.SETS)
def test_the_small_download_is_read(name, tmp_path):
    write(tmp_path, DOWNLOADS[name])
    made = catalogue.manifest(name, tmp_path)
    manifest.check(made)
    assert made.rows and not made.problems
    assert all(len(row.labels) == len(made.label_names) for row in made.rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.SETS)
def test_damaged_tables_never_end_in_another_way(name, tmp_path):
    """100 for each set that has tables; a manifest that comes out of one is checked as the converter checks it."""
    rng = random.Random(name)
    tables = [file for file, text in DOWNLOADS[name].items() if text]
    for attempt in range(100 if tables else 0):
        raw = tmp_path / str(attempt)
        file = rng.choice(tables)
        write(raw, DOWNLOADS[name] | {file: damaged(DOWNLOADS[name][file], rng)})
        try:
            made = catalogue.manifest(name, raw)
            manifest.check(made)
        except ValueError as error:
            raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
            assert raised_in.parts[-2] == "datasets" and str(error).endswith("."), error  # a sentence of ours
            continue
        assert all(problem.reason for problem in made.problems), made.problems
        assert all(len(row.labels) == len(made.label_names) for row in made.rows)
        manifest.count_table(made.rows, made.label_names, made.published)
