"""Variables of a UEFI firmware, in the file that OVMF keeps them in.

The format is that of edk2: a firmware volume (MdePkg PiFirmwareVolume.h) with a store of authenticated
variables (MdeModulePkg VariableFormat.h)."""

import dataclasses
import struct
import uuid


class EfiGuid:
    """Owners of variables."""

    EFI_GLOBAL_VARIABLE = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
    EFI_IMAGE_SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
    SHIM_LOCK = uuid.UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
    SYSTEMD_LOADER = uuid.UUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")


ADDED = 0x3F  # the state of a variable that is there
_DELETED = 0xFD  # the bit of one that is not

NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS = 1, 2, 4


@dataclasses.dataclass(frozen=True)
class EfiVariable:
    vendor_uuid: uuid.UUID
    name: str
    data: bytes
    state: int = ADDED
    flags: int = NON_VOLATILE | BOOTSERVICE_ACCESS | RUNTIME_ACCESS


_VOLUME = struct.Struct("<16x16sQ4sIHH3xB")  # file system, length, signature, attributes, header length, checksum, revision
_BLOCKS = struct.Struct("<IIII")  # count and size, and the end of the list
_STORE = struct.Struct("<16sIBBHI")  # kind, size, format, state
_VARIABLE = struct.Struct("<HBxIQ16xIII16s")  # start, state, flags, count, key, sizes of name and data, owner
_SYSTEM_DATA = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_AUTHENTICATED = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_WORK = bytes.fromhex("2caf2c64feffffffe00f000000000000")  # of an empty log: checksum, state, size
_START = 0x55AA
_BLOCK = 4096


class EfiError(Exception):
    """The file does not have the variables of an OVMF."""


def _store(image):
    """Where the variables begin and end."""
    if len(image) < _VOLUME.size + _BLOCKS.size:
        raise EfiError(f"a file of {len(image)} bytes has no variables of an OVMF")
    system, length, signature, _, header, _, _ = _VOLUME.unpack_from(image)
    if system != _SYSTEM_DATA or signature != b"_FVH" or length > len(image) or header + _STORE.size > length:
        raise EfiError("it does not begin with the firmware volume of variables")
    kind, size, _, _, _, _ = _STORE.unpack_from(image, header)
    if kind != _AUTHENTICATED or not _STORE.size <= size <= length - header:
        raise EfiError("its firmware volume has no store of authenticated variables")
    return header + _STORE.size, header + size


def _entries(image):
    """Offset and content of each variable, then the end of them."""
    at, end = _store(image)
    while at + _VARIABLE.size <= end:
        start, state, flags, _, _, names, datas, owner = _VARIABLE.unpack_from(image, at)
        if start != _START:
            break
        first = at + _VARIABLE.size
        if names % 2 or names + datas > end - first:
            raise EfiError(f"the variable at offset {at} does not fit into its store")
        name = image[first : first + names].decode("utf-16-le", "replace").rstrip("\0")
        yield at, EfiVariable(uuid.UUID(bytes_le=owner), name, bytes(image[first + names : first + names + datas]), state, flags)
        at = (first + names + datas + 3) & ~3
    yield at, None


def read(image):
    """The variables that are there."""
    return [v for _, v in _entries(image) if v is not None and v.state == ADDED]


def write(image, variables):
    """An image in which these variables are added, or take the place of those of their names."""
    image = bytearray(image)
    _, end = _store(image)
    for new in variables:
        for at, old in list(_entries(image)):
            if old is not None and old.state == ADDED and (old.vendor_uuid, old.name) == (new.vendor_uuid, new.name):
                image[at + 2] &= _DELETED
        at = [at for at, _ in _entries(image)][-1]
        name = new.name.encode("utf-16-le") + b"\0\0"
        entry = _VARIABLE.pack(_START, new.state, new.flags, 0, 0, len(name), len(new.data), new.vendor_uuid.bytes_le) + name + new.data
        if len(entry) > end - at:
            raise EfiError(f"there is no room for {new.name}: {len(entry)} bytes, and {end - at} are left")
        image[at : at + len(entry)] = entry
    return bytes(image)


def create():
    """A volume without variables, as an OVMF of 4 MiB begins with: variables, a log, and room to write them anew."""
    size, variables = 0x84000, 0x40000
    image = bytearray(b"\xff" * size)
    header = _VOLUME.size + _BLOCKS.size
    volume = bytearray(_VOLUME.pack(_SYSTEM_DATA, size, b"_FVH", 0x4FEFF, header, 0, 2) + _BLOCKS.pack(size // _BLOCK, _BLOCK, 0, 0))
    struct.pack_into("<H", volume, 50, -sum(struct.unpack(f"<{header // 2}H", volume)) & 0xFFFF)
    image[:header] = volume
    image[header : header + _STORE.size] = _STORE.pack(_AUTHENTICATED, variables - header, 0x5A, 0xFE, 0, 0)
    work = uuid.UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95").bytes_le
    image[variables + 0x1000 : variables + 0x1000 + 32] = work + _WORK
    return bytes(image)
