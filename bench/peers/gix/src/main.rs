//! Index a pack by gitoxide: `gix-peer index PACK FOLDER`.
use std::{fs::File, io::BufReader, path::Path, sync::atomic::AtomicBool};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().collect();
    let mut pack = BufReader::with_capacity(1 << 16, File::open(&words[2])?);
    gix_pack::Bundle::write_to_directory(
        &mut pack,
        Some(Path::new(&words[3])),
        &mut gix_utils::progress::Discard,
        &AtomicBool::new(false),
        None::<gix_object::find::Never>,
        gix_hash::Kind::Sha1,
        Default::default(),
    )?;
    Ok(())
}
