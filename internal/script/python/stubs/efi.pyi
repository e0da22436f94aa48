import dataclasses
import uuid

class EfiError(Exception): ...

class EfiGuid:
    EFI_GLOBAL_VARIABLE: uuid.UUID
    EFI_IMAGE_SECURITY_DATABASE: uuid.UUID
    SHIM_LOCK: uuid.UUID
    SYSTEMD_LOADER: uuid.UUID

@dataclasses.dataclass(frozen=True)
class EfiVariable:
    vendor_uuid: uuid.UUID
    name: str
    data: bytes
    state: int = ...
    flags: int = ...
