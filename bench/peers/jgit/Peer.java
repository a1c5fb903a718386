// Peer on JGit:
//   Peer index PACK FOLDER     writes pack and .idx, as its clone does
//   Peer read REPOSITORY IDS   reads the objects whose hex ids a file names, and throws them away
import java.io.BufferedInputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import org.eclipse.jgit.internal.storage.file.FileRepository;
import org.eclipse.jgit.lib.NullProgressMonitor;
import org.eclipse.jgit.lib.ObjectId;
import org.eclipse.jgit.lib.ObjectInserter;
import org.eclipse.jgit.lib.ObjectReader;
import org.eclipse.jgit.lib.Repository;
import org.eclipse.jgit.transport.PackParser;

public final class Peer {
    public static void main(String[] words) throws Exception {
        if (words[0].equals("read")) {
            read(words[1], words[2]);
        } else {
            index(words[1], words[2]);
        }
    }

    private static void index(String from, String folder) throws Exception {
        try (Repository repository = new FileRepository(new File(folder, "jgit.git"))) {
            repository.create(true);
            try (InputStream pack = new BufferedInputStream(new FileInputStream(from), 1 << 16);
                    ObjectInserter inserter = repository.newObjectInserter()) {
                PackParser parser = inserter.newPackParser(pack);
                parser.parse(NullProgressMonitor.INSTANCE, NullProgressMonitor.INSTANCE);
                inserter.flush();
            }
        }
    }

    private static void read(String folder, String names) throws Exception {
        long size = 0;
        try (Repository repository = new FileRepository(new File(folder));
                ObjectReader reader = repository.newObjectReader()) {
            for (String name : Files.readAllLines(Path.of(names))) {
                size += reader.open(ObjectId.fromString(name)).getCachedBytes(Integer.MAX_VALUE).length;
            }
        }
        System.out.println(size);
    }
}
