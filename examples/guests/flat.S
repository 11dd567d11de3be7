/* A flat binary in assembly, at any privilege level: says at which, and ends with that
 * as its exit code. No header, no linker script; loaded and entered at 2 MiB.
 *
 *   gcc -nostdlib -static -no-pie -Wl,-Ttext=0x200000,--oformat=binary,--build-id=none \
 *       -o flat.bin flat.S
 */
        .set DOORBELL, 0xe0
        .set WRITE, 0xe4
        .set EXIT, 0xec

        .text
        .globl _start
_start:
        outl %eax, $DOORBELL

        mov %cs, %eax
        and $3, %eax
        mov %eax, %ebx              # the privilege level
        add %al, level(%rip)        # '0' becomes its digit

        lea transfer(%rip), %eax
        outl %eax, $WRITE

        mov %ebx, %eax
        outl %eax, $EXIT

text:   .ascii "A flat binary at privilege level "
level:  .ascii "0\n"
        .set length, . - text

        .balign 8
transfer:                           # struct casemate_transfer
        .quad text
        .quad length
        .quad 0                     # flags
        .quad 0                     # result
