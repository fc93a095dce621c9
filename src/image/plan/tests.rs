//! What requests are made for which missing chunks.

use proptest::prelude::*;

use super::*;

fn chunks(lengths: &[u32]) -> Vec<ChunkEntry> {
    let mut file_offset = 1000;
    let entries = lengths.iter().enumerate().map(|(number, frame_len)| {
        let entry = entry(number, file_offset, *frame_len);
        file_offset += u64::from(*frame_len);
        entry
    });
    entries.collect()
}

fn entry(number: usize, file_offset: u64, frame_len: u32) -> ChunkEntry {
    ChunkEntry {
        raw_offset: number as u64 * 4096,
        raw_len: 4096,
        file_offset,
        frame_len,
        digest: digest(number as u64),
        prefix_len: 0,
        zeros: false,
    }
}

/// As good as that of other bytes for each `content`; begins like that of some others.
fn digest(content: u64) -> ChunkDigest {
    let [alike, own] = [content / 2, content].map(u64::to_le_bytes);
    ChunkDigest([alike, own].concat().try_into().unwrap())
}

/// The requests of a plan for what repeats nothing.
fn planned(
    chunks: impl Iterator<Item = ChunkEntry> + Clone,
    missing: &Missing,
    ranges: bool,
) -> Vec<Run> {
    let plan = Plan::new(chunks, missing, ranges);
    assert!(plan.repeats.is_empty());
    plan.runs
}

fn missing(flags: &[bool]) -> Missing {
    let mut missing = Missing::all(flags.len());
    for (number, _) in flags.iter().enumerate().filter(|(_, needed)| !**needed) {
        assert!(missing.done(number));
    }
    missing
}

#[test]
fn small_gaps_are_fetched_along_and_large_ones_start_a_new_request() {
    let small = u32::try_from(REQUEST_COSTS).unwrap();
    let lengths = [10, small, 30, small + 1, 40, 100_000];
    let flags = [true, false, true, false, true, false];
    let found = planned(chunks(&lengths).iter().copied(), &missing(&flags), true);
    let ends: Vec<_> = found.iter().map(|run| run.chunks.clone()).collect();
    assert_eq!(ends, [0..3, 4..5]);
    assert_eq!(found[0].bytes, 1000..1040 + u64::from(small));
}

#[test]
fn a_server_without_ranges_is_asked_once_and_nothing_needed_means_no_request() {
    let chunks = chunks(&[10, 1 << 20, 30, 1 << 20]);
    let flags = [true, false, true, false];
    let found = planned(chunks.iter().copied(), &missing(&flags), false);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].chunks, 0..3);
    assert!(planned(chunks.iter().copied(), &missing(&[false; 4]), true).is_empty());
}

#[test]
fn when_nearly_all_is_needed_one_stream_brings_it() {
    let chunks = chunks(&[100_000, 30_000, 100_000]);
    let needed = missing(&[true, false, true]);
    assert_eq!(planned(chunks.iter().copied(), &needed, true).len(), 1);
    // With more that is not needed, two.
    let longer = chunks.iter().copied().chain([entry(3, 231_000, 200_000)]);
    let needed = missing(&[true, false, true, false]);
    assert_eq!(planned(longer, &needed, true).len(), 2);
}

#[test]
fn too_many_requests_become_fewer_while_that_costs_little() {
    // Of a thousand runs of 100 KB, every second gap is 1 KB over what is always joined, the others are far.
    let pattern = [100_000, 5 << 10, 100_000, 900_000];
    let lengths: Vec<u32> = (0..500).flat_map(|_| pattern).collect();
    let flags: Vec<bool> = (0..2000).map(|number| number % 2 == 0).collect();
    let found = planned(chunks(&lengths).into_iter(), &missing(&flags), true);
    assert_eq!(found.len(), 500);
    // Few enough already: nothing is fetched in vain.
    let found = planned(
        chunks(&lengths[..760]).into_iter(),
        &missing(&flags[..760]),
        true,
    );
    assert_eq!(found.len(), 380);
}

#[test]
fn gaps_of_one_length_do_not_all_join_when_that_costs_much() {
    // 1000 runs of 10 KB, each followed by a gap of 8 KiB: joining all would cost 82 % more.
    let lengths: Vec<u32> = (0..1000)
        .flat_map(|_| [10_000, 8 << 10])
        .chain([9_000_000])
        .collect();
    let flags: Vec<bool> = (0..2001)
        .map(|number| number % 2 == 0 && number < 2000)
        .collect();
    let found = planned(chunks(&lengths).into_iter(), &missing(&flags), true);
    assert_eq!(found.len(), 1000);
}

#[test]
fn a_repeat_is_copied_once_what_it_repeats_has_left_the_pipeline() {
    // Pieces that are as long as they can be; the first chunk, and its repeats far too near, too near, and just so.
    let mut chunks = chunks(&[50_000; 40]);
    let raw_len = u32::try_from(PIECE / 2).unwrap();
    for (number, chunk) in chunks.iter_mut().enumerate() {
        (chunk.raw_offset, chunk.raw_len) = (number as u64 * u64::from(raw_len), raw_len);
    }
    let under_way = PIECES * 3;
    for repeat in [1, under_way, under_way + 1] {
        chunks[repeat].digest = chunks[0].digest;
    }
    let plan = Plan::new(chunks.iter().copied(), &Missing::all(40), true);
    let number = under_way + 1;
    // It would arrive anyway, in the one stream that brings nearly all.
    assert_eq!((plan.runs.len(), &plan.repeats[..]), (1, &[][..]));
    let plan = Plan::new(
        chunks[..=number].iter().copied(),
        &Missing::all(number + 1),
        true,
    );
    assert_eq!(plan.runs[0].chunks, 0..number);
    assert_eq!(plan.repeats, [Repeat { number, place: 0 }]);
}

proptest! {
    #[test]
    fn all_that_is_missing_and_no_gap_at_an_end_is_asked_for_once(
        entries in proptest::collection::vec((1_u32..60_000, any::<bool>()), 1..300),
        ranges in any::<bool>(),
    ) {
        let (lengths, flags): (Vec<u32>, Vec<bool>) = entries.into_iter().unzip();
        let (chunks, missing) = (chunks(&lengths), missing(&flags));
        let found = planned(chunks.iter().copied(), &missing, ranges);
        let mut covered = vec![0; chunks.len()];
        let mut end = 0;
        for run in &found {
            prop_assert!(run.chunks.start >= end && run.chunks.end > run.chunks.start);
            end = run.chunks.end;
            prop_assert!(missing.contains(run.chunks.start) && missing.contains(end - 1));
            prop_assert_eq!(run.bytes.start, chunks[run.chunks.start].file_offset);
            let last = chunks[end - 1];
            prop_assert_eq!(run.bytes.end, last.file_offset + u64::from(last.frame_len));
            for number in run.chunks.clone() {
                covered[number] += 1;
            }
        }
        for (number, flag) in flags.iter().enumerate() {
            prop_assert!(!flag || covered[number] == 1);
        }
    }

    #[test]
    fn what_is_missing_twice_is_fetched_once_and_copied_when_it_has_left_the_pipeline(
        entries in proptest::collection::vec((0..40_u64, prop::bool::weighted(0.8), 1_u32..60_000), 1..300),
        ranges in any::<bool>(),
    ) {
        let (mut raw_offset, mut file_offset) = (0, 1000);
        let entries: Vec<_> = entries.into_iter().map(|(content, needed, frame_len)| {
            let raw_len = 1000 * (1 + content as u32) * 4;
            let entry = ChunkEntry {
                raw_offset, raw_len, file_offset, frame_len, digest: digest(content), prefix_len: 0, zeros: false,
            };
            (raw_offset, file_offset) = (raw_offset + u64::from(raw_len), file_offset + u64::from(frame_len));
            (entry, needed)
        }).collect();
        let (chunks, flags): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        let plan = Plan::new(chunks.iter().copied(), &missing(&flags), ranges);
        let covered = |number: &usize| plan.runs.iter().any(|run| run.chunks.contains(number));
        // As the installer: pieces of missing chunks in order, and only what left the pipeline is in the slot.
        let mut repeats = plan.repeats.iter();
        let mut pieces: std::collections::VecDeque<(usize, Vec<u64>)> = std::iter::once((0, Vec::new())).collect();
        let mut slot: Vec<(u64, ChunkDigest, u32)> = Vec::new();
        for (number, chunk) in chunks.iter().enumerate().filter(|(number, _)| flags[*number]) {
            if pieces.back().unwrap().0 >= PIECE {
                pieces.push_back((0, Vec::new()));
                if pieces.len() > PIECES {
                    for at in pieces.pop_front().unwrap().1 {
                        let chunk = chunks.iter().find(|chunk| chunk.raw_offset == at).unwrap();
                        slot.push((at, chunk.digest, chunk.raw_len));
                    }
                }
            }
            if !covered(&number) {
                let repeat = repeats.next().expect("neither fetched nor copied");
                prop_assert_eq!(repeat.number, number);
                prop_assert!(slot.contains(&(repeat.place, chunk.digest, chunk.raw_len)));
            }
            let piece = pieces.back_mut().unwrap();
            piece.0 += chunk.raw_len as usize;
            piece.1.push(chunk.raw_offset);
        }
        prop_assert_eq!(repeats.next(), None);
    }

    #[test]
    fn a_list_of_missing_chunks_counts_what_it_says(
        count in 0_usize..300, done in proptest::collection::vec(any::<proptest::sample::Index>(), 0..400),
    ) {
        let mut list = Missing::all(count);
        let mut model: std::collections::BTreeSet<usize> = (0..count).collect();
        for at in done.iter().filter(|_| count > 0).map(|at| at.index(count)) {
            prop_assert_eq!(list.done(at), model.remove(&at));
        }
        prop_assert_eq!(list.len(), model.len());
        prop_assert_eq!(list.is_empty(), model.is_empty());
        prop_assert!((0..count + 70).all(|n| list.contains(n) == model.contains(&n)));
    }
}
