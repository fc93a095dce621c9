# Before packaging/uboot/boot.cmd: the environment in two copies on partitions of its own, for a U-Boot that keeps its
# own in one file on FAT (Debian's u-boot-rpi), which no power cut must hit while it is saved. The copies have U-Boot's
# redundant format, as fw_printenv, fw_setenv and fwupdated know it: CRC-32 of the data, one byte that counts, data.
#
# Guarantees: only the older copy is written, and only the names of fwupdated are kept. With both copies damaged nothing
# is read, and boot.cmd goes by the mark beside the boot files.
#
# Size of a copy 0x4000: 32 sectors; its data 0x3ffb bytes from byte 5 on.

# The disk that U-Boot itself was loaded from.
fwup_mmc=0
if test "x${devnum}" != x; then
    fwup_mmc=${devnum}
fi
fwup_at1=0x03000000
fwup_at2=0x03010000
# Where the CRC-32 of a copy is computed to, where its data lies, and its counting byte.
fwup_crc=0x03020000
fwup_data1=0x03000005
fwup_data2=0x03010005
fwup_count_at1=0x03000004
fwup_count_at2=0x03010004

fwup_good1=no
fwup_good2=no
fwup_newer=none
if mmc dev ${fwup_mmc}; then
    if part start mmc ${fwup_mmc} env-1 fwup_start1; then
        if mmc read ${fwup_at1} ${fwup_start1} 20; then
            if crc32 ${fwup_data1} 3ffb ${fwup_crc}; then
                if itest.l *${fwup_at1} == *${fwup_crc}; then
                    fwup_good1=yes
                    fwup_newer=1
                fi
            fi
        fi
    fi
    if part start mmc ${fwup_mmc} env-2 fwup_start2; then
        if mmc read ${fwup_at2} ${fwup_start2} 20; then
            if crc32 ${fwup_data2} 3ffb ${fwup_crc}; then
                if itest.l *${fwup_at2} == *${fwup_crc}; then
                    fwup_good2=yes
                fi
            fi
        fi
    fi
fi
# The counting byte goes from 255 on to 0: the second copy is the newer one when it is ahead by less than half the way.
setexpr.b fwup_count1 *${fwup_count_at1}
setexpr.b fwup_count2 *${fwup_count_at2}
if test ${fwup_good2} = yes; then
    if test ${fwup_good1} = yes; then
        setexpr fwup_ahead 0x${fwup_count2} - 0x${fwup_count1}
        setexpr fwup_ahead 0x${fwup_ahead} % 0x100
        if itest 0x${fwup_ahead} >= 1; then
            if itest 0x${fwup_ahead} < 80; then
                fwup_newer=2
            fi
        fi
    else
        fwup_newer=2
    fi
fi

# Only what is written there counts, not what the file uboot.env may hold.
setenv fwupdated_slot
setenv fwupdated_trial
setenv fwupdated_tries
setenv fwupdated_job
fwup_count=00
fwup_to=${fwup_at1}
fwup_to_data=${fwup_data1}
fwup_to_count=${fwup_count_at1}
fwup_to_start=${fwup_start1}
if test ${fwup_newer} = 2; then
    env import -b ${fwup_data2} 3ffb fwupdated_slot fwupdated_trial fwupdated_tries fwupdated_job
    fwup_count=${fwup_count2}
elif test ${fwup_newer} = 1; then
    env import -b ${fwup_data1} 3ffb fwupdated_slot fwupdated_trial fwupdated_tries fwupdated_job
    fwup_count=${fwup_count1}
    fwup_to=${fwup_at2}
    fwup_to_data=${fwup_data2}
    fwup_to_count=${fwup_count_at2}
    fwup_to_start=${fwup_start2}
else
    echo "fwupdated: no good copy of the environment"
fi

# What boot.cmd runs instead of saveenv: the older copy, in one write, which is read back. The checksum is computed
# elsewhere and copied: a 64-bit U-Boot stores it with four zeros behind it.
fwup_check=0x03030000
setenv fwup_saveenv "setexpr fwup_next 0x${fwup_count} + 1; setexpr fwup_next 0x\${fwup_next} % 0x100; mw.b ${fwup_to} 0 4000; env export -b -s 3ffb ${fwup_to_data} fwupdated_slot fwupdated_trial fwupdated_tries fwupdated_job; crc32 ${fwup_to_data} 3ffb ${fwup_crc}; cp.b ${fwup_crc} ${fwup_to} 4; mw.b ${fwup_to_count} \${fwup_next}; mmc dev ${fwup_mmc} && mmc write ${fwup_to} ${fwup_to_start} 20 && mmc read ${fwup_check} ${fwup_to_start} 20 && cmp.b ${fwup_to} ${fwup_check} 4000"

