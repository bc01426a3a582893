//! Frames and header blocks as properties; a session against a client made of the same frames.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    dictionary::DICTIONARY,
    frame::{Frame, FrameError, MAX_FRAME, parse},
    headers::{Deflater, Headers, Inflater, decode, encode},
    session::Session,
};

fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn frame() -> impl Strategy<Value = Frame> {
    let id = 0..0x8000_0000u32;
    prop_oneof![
        (id.clone(), any::<bool>(), bytes()).prop_map(|(stream, fin, payload)| Frame::Data {
            stream,
            fin,
            payload
        }),
        (id.clone(), any::<bool>(), bytes()).prop_map(|(stream, fin, block)| Frame::SynStream {
            stream,
            fin,
            block
        }),
        (id.clone(), any::<bool>(), bytes()).prop_map(|(stream, fin, block)| Frame::SynReply {
            stream,
            fin,
            block
        }),
        (id.clone(), any::<bool>(), bytes()).prop_map(|(stream, fin, block)| Frame::Headers {
            stream,
            fin,
            block
        }),
        (id.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::Reset { stream, status }),
        any::<u32>().prop_map(Frame::Ping),
        (id, any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
    ]
}

proptest! {
    #[test]
    fn frames_survive_any_cut(frames in proptest::collection::vec(frame(), 1..8), cut in 1usize..64) {
        let whole: Vec<u8> = frames.iter().flat_map(|f| f.to_bytes().to_vec()).collect();
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for piece in whole.chunks(cut) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = parse(&mut buffer).unwrap() {
                seen.push(frame);
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(seen, frames);
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(input in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut buffer = BytesMut::from(&input[..]);
        while let Ok(Some(_)) = parse(&mut buffer) {}
        prop_assert!(buffer.len() <= input.len());
        let _ = decode(&input);
        let _ = Inflater::default().read(&input);
    }

    #[test]
    fn headers_survive_a_connection(
        blocks in proptest::collection::vec(
            proptest::collection::btree_map("[a-z0-9-]{1,20}", "[ -~]{0,2000}", 0..6), 1..6)
    ) {
        let mut deflater = Deflater::new().unwrap();
        let mut inflater = Inflater::default();
        for headers in blocks {
            prop_assert_eq!(&decode(&encode(&headers)).unwrap(), &headers);
            let block = deflater.write(&headers).unwrap();
            prop_assert_eq!(inflater.read(&block).unwrap(), headers);
        }
    }
}

#[test]
fn the_dictionary_is_the_one_of_the_draft() {
    // Every SPDY/3 connection carries this checksum in the first bytes of its first header block.
    let block = Deflater::new().unwrap().write(&Headers::new()).unwrap();
    assert_eq!(DICTIONARY.len(), 1423);
    assert_eq!(block[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
}

#[test]
fn other_versions_and_huge_frames_are_refused() {
    let mut old = BytesMut::from(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1][..]);
    assert_eq!(parse(&mut old), Err(FrameError::Version(2)));
    let mut huge = BytesMut::from(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff][..]);
    assert_eq!(parse(&mut huge), Err(FrameError::TooLarge(0xff_ffff)));
    const { assert!(MAX_FRAME < 0xff_ffff) };
}

#[tokio::test]
async fn a_session_accepts_feeds_and_answers_streams() {
    let (mut client, server) = tokio::io::duplex(64 << 10);
    let mut session = Session::start(server).unwrap();
    let mut deflater = Deflater::new().unwrap();
    let headers = Headers::from([("streamtype".to_owned(), "stdin".to_owned())]);
    let syn = Frame::SynStream {
        stream: 1,
        fin: false,
        block: deflater.write(&headers).unwrap(),
    };
    let data = Frame::Data {
        stream: 1,
        fin: true,
        payload: Bytes::from_static(b"hello"),
    };
    for frame in [syn, Frame::Ping(7), data] {
        client.write_all(&frame.to_bytes()).await.unwrap();
    }
    let mut stream = session.accept().await.unwrap();
    assert_eq!(stream.headers, headers);
    assert_eq!(stream.input.recv().await.unwrap(), "hello");
    assert_eq!(stream.input.recv().await, None);
    stream.output.send(Bytes::from_static(b"bye")).await.unwrap();
    stream.output.finish().await.unwrap();
    session.close().await;
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    let mut buffer = BytesMut::from(&all[..]);
    let mut frames = Vec::new();
    while let Some(frame) = parse(&mut buffer).unwrap() {
        frames.push(frame);
    }
    assert!(
        matches!(
            frames[0],
            Frame::SynReply {
                stream: 1,
                fin: false,
                ..
            }
        ),
        "{frames:?}"
    );
    assert_eq!(frames[1], Frame::Ping(7));
    assert_eq!(
        frames[2],
        Frame::Data {
            stream: 1,
            fin: false,
            payload: Bytes::from_static(b"bye")
        }
    );
    assert_eq!(
        frames[3],
        Frame::Data {
            stream: 1,
            fin: true,
            payload: Bytes::new()
        }
    );
    assert_eq!(frames[4], Frame::GoAway { last: 0, status: 0 });
}
