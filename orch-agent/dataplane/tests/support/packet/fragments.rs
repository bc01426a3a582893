//! Cutting packets into fragments and putting them together (RFC 791 section 3.2, RFC 8200 section 4.5).

use super::{ETHERNET, FRAGMENT, HOP_BY_HOP, ROUTING, sums::sum};

/// Cuts a frame's packet into two fragments, the first with `eights` times eight bytes of what can be cut.
pub fn split(frame: &[u8], eights: usize, identification: u16) -> [Vec<u8>; 2] {
    let cut = eights * 8;
    if frame[ETHERNET] >> 4 == 4 {
        let header = usize::from(frame[ETHERNET] & 15) * 4;
        let (head, body) = frame.split_at(ETHERNET + header);
        let piece = |body: &[u8], field: u16| {
            let mut frame = head.to_vec();
            let ip = &mut frame[ETHERNET..];
            ip[2..4].copy_from_slice(&((header + body.len()) as u16).to_be_bytes());
            ip[4..6].copy_from_slice(&identification.to_be_bytes());
            ip[6..8].copy_from_slice(&field.to_be_bytes());
            ip[10..12].fill(0);
            let checksum = !sum(&[ip]);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            frame.extend(body);
            frame
        };
        return [piece(&body[..cut], 0x2000), piece(&body[cut..], eights as u16)];
    }
    let (at, next) = unfragmentable(frame);
    let (head, body) = frame.split_at(at);
    let kind = frame[next];
    let piece = |body: &[u8], field: u16| {
        let mut frame = head.to_vec();
        frame[next] = FRAGMENT;
        frame.extend([kind, 0]);
        frame.extend(field.to_be_bytes());
        frame.extend(u32::from(identification).to_be_bytes());
        frame.extend(body);
        let length = (frame.len() - ETHERNET - 40) as u16;
        frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
        frame
    };
    [piece(&body[..cut], 1), piece(&body[cut..], (cut as u16) & !7)]
}

/// Where a fragment header belongs, and where the number of what follows it stands.
fn unfragmentable(frame: &[u8]) -> (usize, usize) {
    let (mut at, mut next) = (ETHERNET + 40, ETHERNET + 6);
    while matches!(frame[next], HOP_BY_HOP | ROUTING) {
        next = at;
        at += (usize::from(frame[at + 1]) + 1) * 8;
    }
    (at, next)
}

/// Puts two fragments, in whatever state their addresses are, together again.
pub fn join([first, later]: [&[u8]; 2]) -> Vec<u8> {
    if first[ETHERNET] >> 4 == 4 {
        let header = ETHERNET + usize::from(first[ETHERNET] & 15) * 4;
        assert_eq!(
            first[ETHERNET + 12..header],
            later[ETHERNET + 12..header],
            "addresses"
        );
        assert_eq!(
            first[ETHERNET + 4..ETHERNET + 6],
            later[ETHERNET + 4..ETHERNET + 6],
            "identification"
        );
        let mut frame = [first, &later[header..]].concat();
        let length = (frame.len() - ETHERNET) as u16;
        let ip = &mut frame[ETHERNET..header];
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip[4..6].copy_from_slice(&[0x12, 0x34]);
        ip[6..8].fill(0);
        ip[10..12].fill(0);
        let checksum = !sum(&[ip]);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        return frame;
    }
    let (at, next) = unfragmentable(first);
    assert_eq!(
        first[ETHERNET + 8..ETHERNET + 40],
        later[ETHERNET + 8..ETHERNET + 40],
        "addresses"
    );
    assert_eq!(first[at + 4..at + 8], later[at + 4..at + 8], "identification");
    let mut frame = [&first[..at], &first[at + 8..], &later[at + 8..]].concat();
    frame[next] = first[at];
    let length = (frame.len() - ETHERNET - 40) as u16;
    frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
    frame
}
