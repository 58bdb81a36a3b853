//! Writes as many megabytes as its argument says, in lines of 100 bytes, and ends.

#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};

/// Bytes in one write.
const CHUNK: usize = 6400;
const LINE: usize = 100;

// Made by the compiler: there is no memset to fill it with.
static LINES: [u8; CHUNK] = {
    let mut bytes = [b'.'; CHUNK];
    let mut at = LINE - 1;
    while at < CHUNK {
        bytes[at] = b'\n';
        at += LINE;
    }
    bytes
};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

fn call(number: usize, a: usize, b: usize, c: usize) -> isize {
    let result;
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
             lateout("rcx") _, lateout("r11") _);
    }
    result
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym main)
}

unsafe extern "C" fn main(stack: *const usize) -> ! {
    let mut megabytes = 0_usize;
    unsafe {
        let mut text = *stack.add(2) as *const u8;
        while *text != 0 {
            megabytes = megabytes * 10 + usize::from(*text - b'0');
            text = text.add(1);
        }
    }
    let mut left = megabytes * 1_000_000;
    while left > 0 {
        let part = if left < CHUNK { left } else { CHUNK };
        let mut done = 0;
        while done < part {
            let written = call(1, 1, LINES.as_ptr() as usize + done, part - done);
            if written <= 0 {
                call(231, 1, 0, 0);
            }
            done += written as usize;
        }
        left -= part;
    }
    loop {
        call(231, 0, 0, 0);
    }
}
