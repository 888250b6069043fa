//! One message on a stream: a `u32` little-endian length, then the document.
//!
//! Invariant: the length is compared with the limit before anything is allocated, and what is
//! allocated grows with what arrives, not with what was claimed.

use std::time::Duration;

use sluice_protocol::codec::Document;
use sluice_protocol::limits::MESSAGE_BYTES_MAX;
use sluice_protocol::messages::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::error::MessageError;

/// Bytes allocated before the first of them has arrived.
const FIRST_BYTES: usize = 16 * 1024;

/// Writes one message; the stream stays open.
pub async fn write<W>(stream: &mut W, message: &Message, limit: Duration) -> Result<(), MessageError>
where
    W: AsyncWrite + Unpin,
{
    let bytes = message.to_bytes();
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(MessageError::TooLong { found: bytes.len() as u64, limit: MESSAGE_BYTES_MAX as u64 });
    }
    let mut framed = Vec::with_capacity(4 + bytes.len());
    framed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    framed.extend_from_slice(&bytes);
    let all = async {
        stream.write_all(&framed).await?;
        stream.flush().await
    };
    within(limit, all).await?.map_err(MessageError::Stream)
}

/// Reads one message; what follows it is left on the stream.
pub async fn read<R>(stream: &mut R, limit: Duration) -> Result<Message, MessageError>
where
    R: AsyncRead + Unpin,
{
    read_at_most(stream, MESSAGE_BYTES_MAX, limit).await
}

/// Reads one message of at most `max` bytes.
pub async fn read_at_most<R>(stream: &mut R, max: usize, limit: Duration) -> Result<Message, MessageError>
where
    R: AsyncRead + Unpin,
{
    let bytes = within(limit, read_frame(stream, max)).await??;
    Ok(Message::from_bytes(&bytes)?)
}

async fn read_frame<R>(stream: &mut R, max: usize) -> Result<Vec<u8>, MessageError>
where
    R: AsyncRead + Unpin,
{
    let mut length = [0u8; 4];
    stream.read_exact(&mut length).await.map_err(cut)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > max {
        return Err(MessageError::TooLong { found: length as u64, limit: max as u64 });
    }
    let mut bytes = Vec::with_capacity(length.min(FIRST_BYTES));
    stream.take(length as u64).read_to_end(&mut bytes).await.map_err(cut)?;
    if bytes.len() == length { Ok(bytes) } else { Err(MessageError::Cut) }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, MessageError> {
    timeout(limit, work).await.map_err(|_| MessageError::Slow { seconds: limit.as_secs() })
}

fn cut(e: std::io::Error) -> MessageError {
    if e.kind() == std::io::ErrorKind::UnexpectedEof { MessageError::Cut } else { MessageError::Stream(e) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_protocol::messages::{REFUSED_LATER, Refusal};

    const LONG: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_message_goes_through_and_leaves_the_rest() {
        let said = Message::Refused(Refusal::new(REFUSED_LATER, "later"));
        let mut wire = Vec::new();
        write(&mut wire, &said, LONG).await.unwrap();
        wire.extend_from_slice(b"rest");
        let mut reader = &wire[..];
        assert_eq!(read(&mut reader, LONG).await.unwrap(), said);
        assert_eq!(reader, b"rest");
    }

    #[tokio::test]
    async fn a_long_claim_is_refused_before_it_is_read() {
        let mut wire = ((MESSAGE_BYTES_MAX + 1) as u32).to_le_bytes().to_vec();
        wire.push(0);
        let e = read(&mut &wire[..], LONG).await.unwrap_err();
        assert!(matches!(e, MessageError::TooLong { .. }) && !e.is_retryable(), "{e}");
    }

    #[tokio::test]
    async fn every_cut_is_named() {
        let mut wire = Vec::new();
        write(&mut wire, &Message::Done, LONG).await.unwrap();
        for end in 0..wire.len() {
            let e = read(&mut &wire[..end], LONG).await.unwrap_err();
            assert!(matches!(e, MessageError::Cut), "cut at {end}: {e}");
        }
    }

    #[tokio::test]
    async fn garbage_is_no_message() {
        let mut wire = 3u32.to_le_bytes().to_vec();
        wire.extend_from_slice(&[0xff, 0xff, 0xff]);
        assert!(matches!(read(&mut &wire[..], LONG).await, Err(MessageError::Codec(_))));
    }

    #[tokio::test]
    async fn a_silent_writer_is_given_up() {
        let (_kept, mut far) = tokio::io::duplex(64);
        let short = Duration::from_millis(20);
        assert!(matches!(read(&mut far, short).await, Err(MessageError::Slow { .. })));
    }
}
