"""What gets prescribed: believable medication lines under codes that are plainly invented."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Medicine:
    """``quantity`` is that of one supply: a whole course for acute medicines, 28 days for the others."""

    description: str
    code: str
    unit: str
    quantity: float
    dosage: str


def _medicines(first_code: int, lines: tuple[tuple[str, str, float, str], ...]) -> tuple[Medicine, ...]:
    return tuple(
        Medicine(description, f"{first_code + number}", unit, quantity, dosage)
        for number, (description, unit, quantity, dosage) in enumerate(lines)
    )


ACUTE = _medicines(
    999000001001,
    (
        ("Amoxicillin 500mg capsules", "capsule", 21, "One capsule three times a day"),
        ("Amoxicillin 250mg/5ml oral suspension sugar free", "ml", 100, "5ml three times a day for 7 days"),
        ("Flucloxacillin 500mg capsules", "capsule", 28, "One capsule four times a day on an empty stomach"),
        ("Phenoxymethylpenicillin 250mg tablets", "tablet", 40, "Two tablets four times a day for 5 days"),
        ("Doxycycline 100mg capsules", "capsule", 8, "Two on the first day, then one a day"),
        ("Clarithromycin 500mg tablets", "tablet", 14, "One tablet twice a day"),
        ("Nitrofurantoin 100mg modified-release capsules", "capsule", 6, "One capsule twice a day for 3 days"),
        ("Trimethoprim 200mg tablets", "tablet", 6, "One tablet twice a day for 3 days"),
        ("Chloramphenicol 0.5% eye drops", "ml", 10, "One drop every two hours into the affected eye"),
        ("Chloramphenicol 1% eye ointment", "gram", 4, "Apply at night"),
        ("Fusidic acid 2% cream", "gram", 15, "Apply three times a day for 7 days"),
        ("Hydrocortisone 1% cream", "gram", 30, "Apply thinly twice a day for up to 7 days"),
        ("Clotrimazole 1% cream", "gram", 20, "Apply two or three times a day"),
        ("Prednisolone 5mg tablets", "tablet", 40, "Eight tablets in the morning for 5 days"),
        ("Naproxen 500mg tablets", "tablet", 28, "One tablet twice a day with food"),
        ("Ibuprofen 400mg tablets", "tablet", 24, "One tablet three times a day with food when required"),
        ("Codeine 30mg tablets", "tablet", 28, "One or two tablets up to four times a day when required"),
        ("Co-codamol 30mg/500mg tablets", "tablet", 56, "One or two tablets up to four times a day when required"),
        ("Cyclizine 50mg tablets", "tablet", 21, "One tablet three times a day when required"),
        ("Aciclovir 800mg tablets", "tablet", 35, "One tablet five times a day"),
        ("Otomize ear spray", "ml", 5, "One spray three times a day into the affected ear"),
        ("Fluconazole 150mg capsules", "capsule", 1, "One capsule as a single dose"),
    ),
)

REPEAT = _medicines(
    999000002001,
    (
        ("Atorvastatin 20mg tablets", "tablet", 28, "One tablet at night"),
        ("Atorvastatin 80mg tablets", "tablet", 28, "One tablet a day"),
        ("Simvastatin 40mg tablets", "tablet", 28, "One tablet at night"),
        ("Amlodipine 5mg tablets", "tablet", 28, "One tablet a day"),
        ("Amlodipine 10mg tablets", "tablet", 28, "One tablet a day"),
        ("Ramipril 2.5mg capsules", "capsule", 28, "One capsule a day"),
        ("Ramipril 10mg capsules", "capsule", 28, "One capsule a day"),
        ("Lisinopril 20mg tablets", "tablet", 28, "One tablet in the morning"),
        ("Losartan 50mg tablets", "tablet", 28, "One tablet a day"),
        ("Bisoprolol 2.5mg tablets", "tablet", 28, "One tablet in the morning"),
        ("Bendroflumethiazide 2.5mg tablets", "tablet", 28, "One tablet in the morning"),
        ("Indapamide 2.5mg tablets", "tablet", 28, "One tablet in the morning"),
        ("Furosemide 40mg tablets", "tablet", 28, "One tablet in the morning"),
        ("Aspirin 75mg dispersible tablets", "tablet", 28, "One tablet a day dispersed in water"),
        ("Clopidogrel 75mg tablets", "tablet", 28, "One tablet a day"),
        ("Apixaban 5mg tablets", "tablet", 56, "One tablet twice a day"),
        ("Metformin 500mg tablets", "tablet", 112, "Two tablets twice a day with food"),
        ("Metformin 1g modified-release tablets", "tablet", 56, "Two tablets with the evening meal"),
        ("Gliclazide 80mg tablets", "tablet", 56, "One tablet twice a day with food"),
        ("Empagliflozin 10mg tablets", "tablet", 28, "One tablet a day"),
        ("Levothyroxine sodium 25microgram tablets", "tablet", 28, "One tablet before breakfast"),
        ("Levothyroxine sodium 100microgram tablets", "tablet", 28, "One tablet before breakfast"),
        ("Omeprazole 20mg gastro-resistant capsules", "capsule", 28, "One capsule a day"),
        ("Lansoprazole 30mg gastro-resistant capsules", "capsule", 28, "One capsule a day, 30 minutes before food"),
        ("Salbutamol 100micrograms/dose inhaler CFC free", "dose", 200, "Two puffs when required"),
        ("Beclometasone 100micrograms/dose inhaler CFC free", "dose", 200, "Two puffs twice a day"),
        ("Tiotropium bromide 2.5micrograms/dose inhaler", "dose", 60, "Two puffs once a day"),
        ("Sertraline 50mg tablets", "tablet", 28, "One tablet a day"),
        ("Citalopram 20mg tablets", "tablet", 28, "One tablet a day"),
        ("Mirtazapine 15mg tablets", "tablet", 28, "One tablet at night"),
        ("Amitriptyline 10mg tablets", "tablet", 28, "One tablet at night"),
        ("Gabapentin 300mg capsules", "capsule", 84, "One capsule three times a day"),
        ("Paracetamol 500mg tablets", "tablet", 224, "Two tablets up to four times a day when required"),
        ("Folic acid 5mg tablets", "tablet", 28, "One tablet a day"),
        ("Ferrous fumarate 210mg tablets", "tablet", 28, "One tablet a day"),
        ("Colecalciferol 800unit capsules", "capsule", 28, "One capsule a day"),
        ("Alendronic acid 70mg tablets", "tablet", 4, "One tablet a week on the same day, with water"),
        ("Allopurinol 100mg tablets", "tablet", 28, "One tablet a day"),
        ("Tamsulosin 400microgram modified-release capsules", "capsule", 28, "One capsule a day after breakfast"),
        ("Latanoprost 50micrograms/ml eye drops", "ml", 2.5, "One drop at night into both eyes"),
        ("Glucose blood testing reagent strips", "strip", 50, "Use as directed"),
        ("White soft paraffin 50% / liquid paraffin 50% ointment", "gram", 500, "Apply as required"),
    ),
)
