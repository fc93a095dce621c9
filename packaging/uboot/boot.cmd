# fwupdated's boot script for U-Boot: chooses the slot, counts a trial's boots, starts the kernel.
#
#   mkimage -T script -d boot.cmd boot.scr        and boot.scr onto the boot partition, where U-Boot looks for it
#
# Guarantees:
# - Only a trial counts. The confirmed slot boots as often as it likes.
# - A slot that is not confirmed boots only in a trial with tries left, and only when the try was written down.
# - Values that make no sense are put right. There is always a slot to boot.
# - The environment is saved only when it changed, once a boot at most.
#
# The decision is the one of `boot_decision` in src/platform/uboot_env/boot_model.rs; tests/boot_script.rs runs this
# file and compares. It runs it under sh: write only what U-Boot's hush and a POSIX shell both understand, which is
# if, for, test with = and !=, &&, assignments that are not empty, ${name}. No arithmetic, no !, no -a, no [ ], no ' (hush
# expands nothing between two of them, even within " ").
# An x before each side of a comparison keeps empty and odd values harmless. Names that start with fwup_ are this
# script's own; hush keeps them out of the environment, so that saveenv does not store them.
#
# What the board needs:
# - A U-Boot that stores its environment where /etc/fw_env.config says, best in two raw copies
#   (CONFIG_SYS_REDUNDAND_ENVIRONMENT). The file uboot.env on a FAT partition is one copy and not safe against a
#   power cut while it is saved.
# - CONFIG_BOOTDELAY=-2 on a Raspberry Pi 5 or CM5: noise on an open serial line stops U-Boot at its prompt otherwise.
# - A GPT with named partitions, and CONFIG_CMD_PART.

### This board ########################################################################################################

# The disk with the slots, as U-Boot counts: SD card and eMMC are `mmc`, a USB disk is `usb` (after `usb start`).
fwup_disk_type=mmc
fwup_disk=0

# Names of the partitions. Root file systems, as slots.a.rootfs and slots.b.rootfs in fwupdated.toml have them:
fwup_root_a=rootfs-a
fwup_root_b=rootfs-b
# Where the slot's kernel is: the root file system itself, or a boot partition for each slot (boot-a, boot-b).
fwup_files_a=rootfs-a
fwup_files_b=rootfs-b

# Files there; links are followed. `none`: no initial RAM disk.
fwup_kernel=/boot/vmlinuz
fwup_initrd=/boot/initrd.img
# The device tree: `firmware` passes on the one that the Raspberry Pi's firmware made for this very board, with its
# overlays and memory layout. Else a file beside the kernel.
fwup_dtb=firmware

# booti starts a 64-bit Image, bootz a 32-bit zImage.
fwup_start=booti

# The second mark of the confirmed slot, for the day when the environment is lost: the partition, and the file on it that
# bootloader.mark_file of fwupdated.toml names. `none`: no second mark; slot a boots then, confirmed or not.
fwup_mark_part=boot
fwup_mark=/fwupdated.slot

# Added to what the firmware passes (cmdline.txt), which should have no root= of its own. panic= matters: a kernel
# that cannot go on must restart, which costs the trial its next try. A kernel that hangs without a panic is the
# hardware watchdog's business (RuntimeWatchdogSec= in systemd's system.conf).
fwup_args="ro rootwait panic=10"

### The decision ######################################################################################################

fwup_save=no

# 1. Without a valid confirmed slot, the one that the mark names becomes it, else slot a.
if test "x${fwupdated_slot}" != xa && test "x${fwupdated_slot}" != xb; then
    setenv fwupdated_mark
    if test ${fwup_mark} != none && part number ${fwup_disk_type} ${fwup_disk} ${fwup_mark_part} fwup_part; then
        if load ${fwup_disk_type} ${fwup_disk}:${fwup_part} ${kernel_addr_r} ${fwup_mark}; then
            # Nothing but this one variable is taken from the file.
            env import -t ${kernel_addr_r} ${filesize} fwupdated_mark
        fi
    fi
    if test "x${fwupdated_mark}" != xb; then
        setenv fwupdated_mark a
    fi
    echo "fwupdated: fwupdated_slot=${fwupdated_slot} is neither a nor b, slot ${fwupdated_mark} becomes the confirmed slot"
    setenv fwupdated_slot ${fwupdated_mark}
    setenv fwupdated_mark
    fwup_save=yes
fi
fwup_slot=${fwupdated_slot}
fwup_boot=confirmed
fwup_other=b
if test ${fwup_slot} = b; then
    fwup_other=a
fi

# Tries left after this boot: one less than one digit, or `none`.
fwup_left=none
fwup_less=0
for fwup_digit in 1 2 3 4 5 6 7 8 9; do
    if test "x${fwupdated_tries}" = x${fwup_digit}; then
        fwup_left=${fwup_less}
    fi
    fwup_less=${fwup_digit}
done

# 2. A trial of the other slot with tries left costs one try and boots that slot.
# 3. A trial that is used up or makes no sense ends, and the confirmed slot boots.
if test "x${fwupdated_trial}" = x${fwup_other} && test ${fwup_left} != none; then
    echo "fwupdated: trial boot of slot ${fwup_other}, ${fwup_left} more after this one"
    setenv fwupdated_tries ${fwup_left}
    fwup_slot=${fwup_other}
    fwup_boot=trial
    fwup_save=yes
elif test "x${fwupdated_trial}${fwupdated_tries}${fwupdated_job}" != x; then
    echo "fwupdated: the trial is over, slot ${fwup_slot} is the confirmed slot"
    setenv fwupdated_trial
    setenv fwupdated_tries
    setenv fwupdated_job
    fwup_save=yes
fi

# A try that cannot be written down is not taken: it would be taken again at every boot.
if test ${fwup_save} = yes; then
    if saveenv; then
        echo "fwupdated: environment saved"
    else
        echo "fwupdated: the environment cannot be saved, booting the confirmed slot"
        fwup_slot=${fwupdated_slot}
        fwup_boot=confirmed
    fi
fi

### Load and start ####################################################################################################

if test ${fwup_slot} = b; then
    fwup_root=${fwup_root_b}
    fwup_files=${fwup_files_b}
else
    fwup_root=${fwup_root_a}
    fwup_files=${fwup_files_a}
fi
echo "fwupdated: slot ${fwup_slot}, root file system ${fwup_root}"

# The firmware's own arguments stand in its device tree.
fwup_fdt=-
if test "x${fdt_addr}" != x; then
    fwup_fdt=${fdt_addr}
    if fdt addr ${fdt_addr}; then
        fdt get value fwup_firmware_args /chosen bootargs
    fi
fi

fwup_loaded=no
fwup_ramdisk=-
if part number ${fwup_disk_type} ${fwup_disk} ${fwup_files} fwup_part; then
    if load ${fwup_disk_type} ${fwup_disk}:${fwup_part} ${kernel_addr_r} ${fwup_kernel}; then
        fwup_loaded=yes
    fi
    if test ${fwup_dtb} != firmware; then
        fwup_fdt=${fdt_addr_r}
        if load ${fwup_disk_type} ${fwup_disk}:${fwup_part} ${fdt_addr_r} ${fwup_dtb}; then
            echo "fwupdated: device tree ${fwup_dtb}"
        else
            fwup_loaded=no
        fi
    fi
    # Last, because ${filesize} is that of the last file loaded.
    if test ${fwup_initrd} != none; then
        if load ${fwup_disk_type} ${fwup_disk}:${fwup_part} ${ramdisk_addr_r} ${fwup_initrd}; then
            fwup_ramdisk=${ramdisk_addr_r}:${filesize}
        else
            fwup_loaded=no
        fi
    fi
fi

if test ${fwup_loaded} = yes; then
    setenv bootargs "${fwup_firmware_args} ${fwup_args} root=PARTLABEL=${fwup_root}"
    # For people, and for fwupdated-trial.timer, which ends a trial that nobody confirms.
    setenv bootargs "${bootargs} fwupdated.slot=${fwup_slot} fwupdated.boot=${fwup_boot}"
    setenv bootargs "${bootargs} fwupdated.script=1"
    # Comes back only when it fails.
    ${fwup_start} ${kernel_addr_r} ${fwup_ramdisk} ${fwup_fdt}
fi

# Start over. In a trial this costs the next try, and the confirmed slot boots when there is none left. Outside a
# trial the confirmed slot is tried again: a slot that is not confirmed may be half written.
echo "fwupdated: slot ${fwup_slot} cannot be started, trying again from the start in 5 s"
sleep 5
reset
