"""Files of laboratories: what was measured, what an operator or a noise model needs to know, and units."""

from skinverse.io._data_exchange import DataExchange, read_data_exchange
from skinverse.io._dicom import DicomSeries, read_dicom_series
from skinverse.io._fastmri import FastMRI, read_fastmri
from skinverse.io._tiff import Tiff, read_tiff

__all__ = [
    "DataExchange",
    "DicomSeries",
    "FastMRI",
    "Tiff",
    "read_data_exchange",
    "read_dicom_series",
    "read_fastmri",
    "read_tiff",
]
