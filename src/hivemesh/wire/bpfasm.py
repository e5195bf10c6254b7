"""A small assembler for eBPF: instructions in, bytes out. No compiler, and no program that nobody can read.

    code = Code()
    code.load(R1, R6, 36)                    # r1 = *(u32 *)(r6 + 36)
    code.jump_if(R1, "!=", 6, "pass")
    code.label("pass"); code.mov(R0, 1); code.exit()
    code.assemble({})

Numbers are from linux/bpf.h and Documentation/bpf/standardization/instruction-set.rst. Little-endian machines only.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)
"""R0: result; R1 to R5: arguments, lost in a call; R6 to R9: kept; FP: the end of 512 bytes of stack, read only."""

_ALU, _ALU64, _JMP, _JMP32 = 0x04, 0x07, 0x05, 0x06
_IMMEDIATE, _REGISTER = 0x00, 0x08
_ADD, _SUB, _OR, _LSH, _RSH, _MOD, _XOR, _MOV = 0x00, 0x10, 0x40, 0x60, 0x70, 0x90, 0xA0, 0xB0
_MUL = 0x20
_CONDITIONS = {"==": 0x10, "!=": 0x50}
_CALL, _EXIT = 0x85, 0x95
_LOAD, _STORE, _STORE_IMMEDIATE = 0x61, 0x63, 0x62
_SIZES = {4: 0x00, 8: 0x18}  # BPF_W, BPF_DW
_ATOMIC_U32, _ADD_AND_FETCH = 0xC3, 0x01
_LOAD_64, _OF_MAP = 0x18, 1  # BPF_PSEUDO_MAP_FD


@dataclass(frozen=True, slots=True)
class _Instruction:
    code: int
    into: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0
    target: str = ""  # of a jump
    of_map: str = ""  # whose descriptor is the immediate; two slots long

    @property
    def length(self) -> int:
        return 2 if self.of_map else 1


class Code:
    """A program being written. Jumps lead forwards or backwards to labels; the kernel's verifier has the last word."""

    def __init__(self) -> None:
        self._instructions: list[_Instruction] = []
        self._labels: dict[str, int] = {}
        self._length = 0

    def _put(self, instruction: _Instruction) -> None:
        self._instructions.append(instruction)
        self._length += instruction.length

    def label(self, name: str) -> None:
        self._labels[name] = self._length

    # --- memory

    def load(self, into: int, base: int, offset: int, size: int = 4) -> None:
        """into = *(base + offset); 4 bytes are extended with zeros."""
        self._put(_Instruction(_LOAD | _SIZES[size], into, base, offset))

    def store(self, base: int, offset: int, value: int, size: int = 4) -> None:
        """*(base + offset) = register `value`."""
        self._put(_Instruction(_STORE | _SIZES[size], base, value, offset))

    def store_number(self, base: int, offset: int, number: int, size: int = 4) -> None:
        """*(base + offset) = number, whose sign is extended."""
        self._put(_Instruction(_STORE_IMMEDIATE | _SIZES[size], base, 0, offset, number))

    def copy(self, to: int, to_offset: int, base: int, offset: int, size: int, through: int = R1) -> None:
        """`size` bytes, a multiple of 4, by way of a register."""
        for at in range(0, size, 4):
            self.load(through, base, offset + at)
            self.store(to, to_offset + at, through)

    def fetch_add(self, base: int, offset: int, register: int) -> None:
        """Atomically, of 4 bytes: register, *(base + offset) = *(base + offset), that + register. Kernel 5.12."""
        self._put(_Instruction(_ATOMIC_U32, base, register, offset, _ADD_AND_FETCH))

    # --- arithmetic

    def mov(self, into: int, number: int) -> None:
        self._put(_Instruction(_ALU64 | _MOV | _IMMEDIATE, into, immediate=number))

    def copy_register(self, into: int, source: int) -> None:
        self._put(_Instruction(_ALU64 | _MOV | _REGISTER, into, source))

    def address(self, into: int, offset: int) -> None:
        """into = FP + offset."""
        self.copy_register(into, FP)
        self._put(_Instruction(_ALU64 | _ADD | _IMMEDIATE, into, immediate=offset))

    def mov32(self, into: int, source: int) -> None:
        self._put(_Instruction(_ALU | _MOV | _REGISTER, into, source))

    def add32(self, into: int, source: int) -> None:
        self._put(_Instruction(_ALU | _ADD | _REGISTER, into, source))

    def sub32(self, into: int, source: int) -> None:
        self._put(_Instruction(_ALU | _SUB | _REGISTER, into, source))

    def xor32(self, into: int, source: int) -> None:
        self._put(_Instruction(_ALU | _XOR | _REGISTER, into, source))

    def or32(self, into: int, source: int) -> None:
        self._put(_Instruction(_ALU | _OR | _REGISTER, into, source))

    def mod32(self, into: int, source: int) -> None:
        self._put(_Instruction(_ALU | _MOD | _REGISTER, into, source))

    def scale32(self, into: int, source: int) -> None:
        """into = (u32)into * (u32)source >> 32: an even share of `source`, without a division."""
        self._put(_Instruction(_ALU64 | _MUL | _REGISTER, into, source))
        self._put(_Instruction(_ALU64 | _RSH | _IMMEDIATE, into, immediate=32))

    def rotated32(self, into: int, source: int, bits: int, scratch: int) -> None:
        """into = rol32(source, bits); neither may be the other, nor `scratch`."""
        self.mov32(into, source)
        self.mov32(scratch, source)
        self._put(_Instruction(_ALU | _LSH | _IMMEDIATE, into, immediate=bits))
        self._put(_Instruction(_ALU | _RSH | _IMMEDIATE, scratch, immediate=32 - bits))
        self.or32(into, scratch)

    # --- flow

    def jump(self, target: str) -> None:
        self._put(_Instruction(_JMP, target=target))

    def jump_if(self, register: int, condition: str, number: int, target: str, *, wide: bool = False) -> None:
        """Compares 4 bytes with `number`; `wide`: 8, as pointers need."""
        kind = _JMP if wide else _JMP32
        self._put(_Instruction(kind | _CONDITIONS[condition] | _IMMEDIATE, register, immediate=number, target=target))

    def jump_if_register(self, register: int, condition: str, other: int, target: str) -> None:
        self._put(_Instruction(_JMP32 | _CONDITIONS[condition] | _REGISTER, register, other, target=target))

    def map(self, into: int, name: str) -> None:
        self._put(_Instruction(_LOAD_64, into, _OF_MAP, of_map=name))

    def call(self, helper: int) -> None:
        self._put(_Instruction(_CALL, immediate=helper))

    def exit(self) -> None:
        self._put(_Instruction(_EXIT))

    # --- the end

    def assemble(self, maps: Mapping[str, int]) -> bytes:
        """The program for the kernel; `maps` are descriptors by name. Raises `KeyError` for an unknown label or map."""
        found = b""
        for instruction in self._instructions:
            here = len(found) // 8
            offset, number = instruction.offset, instruction.immediate
            if instruction.target:
                offset = self._labels[instruction.target] - here - 1
            if instruction.of_map:
                number = maps[instruction.of_map]
            number = number - (1 << 32) if number >= 1 << 31 else number
            found += struct.pack("<BBhi", instruction.code, instruction.into | instruction.source << 4, offset, number)
            if instruction.of_map:
                found += bytes(8)
        return found
