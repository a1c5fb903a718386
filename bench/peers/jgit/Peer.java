// Index a pack by JGit: Peer index PACK FOLDER. It writes pack and .idx, as its clone does.
import java.io.BufferedInputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.InputStream;
import org.eclipse.jgit.internal.storage.file.FileRepository;
import org.eclipse.jgit.lib.NullProgressMonitor;
import org.eclipse.jgit.lib.ObjectInserter;
import org.eclipse.jgit.lib.Repository;
import org.eclipse.jgit.transport.PackParser;

public final class Peer {
    public static void main(String[] words) throws Exception {
        try (Repository repository = new FileRepository(new File(words[2], "jgit.git"))) {
            repository.create(true);
            try (InputStream pack = new BufferedInputStream(new FileInputStream(words[1]), 1 << 16);
                    ObjectInserter inserter = repository.newObjectInserter()) {
                PackParser parser = inserter.newPackParser(pack);
                parser.parse(NullProgressMonitor.INSTANCE, NullProgressMonitor.INSTANCE);
                inserter.flush();
            }
        }
    }
}
